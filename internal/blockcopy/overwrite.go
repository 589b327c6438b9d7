package blockcopy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"
)

// compareBytes is the grain in which equal content is left alone.
const compareBytes = 8 << 10

// headBytes are the first ones of a grain that are remembered: of a page that
// was changed they nearly always differ, for they are its LSN.
const headBytes = 8

// overwritten is what a batch is going to overwrite, as it was read for the
// undo just now: enough to tell most blocks that differ from those that may be
// equal. It is complete: where it knows of nothing, there is nothing.
type overwritten struct {
	runs map[string][]headRun // by path, ascending as the tasks' ranges are
}

// headRun is a run of bytes that is there, and how each of its grains begins.
type headRun struct {
	off, end int64
	first    []uint64
}

func newOverwritten() *overwritten { return &overwritten{runs: map[string][]headRun{}} }

// note takes in what was read; calls for one path ascend.
func (o *overwritten) note(path string, off int64, data []byte) {
	if o == nil {
		return
	}
	runs := o.runs[path]
	if n := len(runs); n == 0 || runs[n-1].end != off || (off-runs[n-1].off)%compareBytes != 0 {
		runs = append(runs, headRun{off: off, end: off})
	}
	run := &runs[len(runs)-1]
	run.end += int64(len(data))
	for ; len(data) >= headBytes; data = data[min(compareBytes, len(data)):] {
		run.first = append(run.first, binary.LittleEndian.Uint64(data))
	}
	o.runs[path] = runs
}

// differs tells whether a grain is certainly not what is there.
func (o *overwritten) differs(path string, off int64, grain []byte) bool {
	runs := o.runs[path]
	i, found := slices.BinarySearchFunc(runs, off, func(r headRun, off int64) int {
		switch {
		case r.end <= off:
			return -1
		case r.off > off:
			return 1
		}
		return 0
	})
	if !found {
		return i == len(runs) || runs[i].off >= off+int64(len(grain)) // nothing is there
	}
	run := runs[i]
	n := (off - run.off) / compareBytes
	if (off-run.off)%compareBytes != 0 || n >= int64(len(run.first)) || len(grain) < headBytes {
		return false
	}
	return run.first[n] != binary.LittleEndian.Uint64(grain)
}

// write writes what differs from what is there: a block that is not written
// need not reach the disk either. Where the old content was not read for the
// undo just now (o is nil), looking at it may cost more than writing, so all
// is written.
func (o *overwritten) write(f *batchFile, path string, data []byte, off int64) error {
	if o == nil {
		f.written.Store(true)
		_, err := f.WriteAt(data, off)
		return err
	}
	for at := 0; at < len(data); {
		end := at
		for end < len(data) {
			grain := data[end:min(end+compareBytes, len(data))]
			if !o.differs(path, off+int64(end), grain) {
				same, err := sameAt(f, grain, off+int64(end))
				if err != nil {
					return err
				}
				if same {
					break
				}
			}
			end += len(grain)
		}
		if end > at {
			f.written.Store(true)
			if _, err := f.WriteAt(data[at:end], off+int64(at)); err != nil {
				return err
			}
		}
		at = min(end+compareBytes, len(data))
	}
	return nil
}

var compareBuffers = sync.Pool{New: func() any { return new([compareBytes]byte) }}

// sameAt compares one grain with what the file holds.
func sameAt(f io.ReaderAt, grain []byte, off int64) (bool, error) {
	buf := compareBuffers.Get().(*[compareBytes]byte)
	defer compareBuffers.Put(buf)
	got, err := f.ReadAt(buf[:len(grain)], off)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return got == len(grain) && bytes.Equal(buf[:got], grain), nil
}
