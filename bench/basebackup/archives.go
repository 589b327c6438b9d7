package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// archives writes what the server sends within the copy:
//
//	'n' name and tablespace path, both ended by a zero byte: an archive begins
//	'm' the manifest begins
//	'd' bytes of either
//	'p' bytes done so far, int64
type archives struct {
	o       options
	to      io.Writer
	end     func() error // of the file that is being written
	written []*os.File
}

func (a *archives) message(b []byte) error {
	if len(b) == 0 {
		return errors.New("an empty message")
	}
	switch kind, rest := b[0], b[1:]; kind {
	case 'n':
		name, _, ok := bytes.Cut(rest, []byte{0})
		if !ok || filepath.Base(string(name)) != string(name) {
			return fmt.Errorf("an archive named %q", rest)
		}
		if a.o.manifestOnly {
			a.to = io.Discard
			return nil
		}
		return a.begin(string(name), true)
	case 'm':
		return a.begin("backup_manifest", false)
	case 'd':
		if a.to == nil {
			return errors.New("data of no archive")
		}
		_, err := a.to.Write(rest)
		return err
	case 'p':
		return nil
	default:
		return fmt.Errorf("a message of kind %q", kind)
	}
}

// tarEnd is what ends a tar archive; the server leaves it out.
var tarEnd [1024]byte

// begin opens the next file.
func (a *archives) begin(name string, tar bool) error {
	if err := a.close(); err != nil {
		return err
	}
	compressed := tar && a.o.compress == "zstd"
	if compressed {
		name += ".zst"
	}
	f, err := os.OpenFile(filepath.Join(a.o.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	a.written = append(a.written, f)
	w := bufio.NewWriterSize(f, 256<<10)
	a.to, a.end = w, w.Flush
	if compressed {
		z, err := compressor(w, f)
		if err != nil {
			return err
		}
		a.to, a.end = z, func() error { return errors.Join(z.Close(), w.Flush()) }
	}
	if tar {
		to, end := a.to, a.end
		a.end = func() error {
			_, err := to.Write(tarEnd[:])
			return errors.Join(err, end())
		}
	}
	return nil
}

// compressor compresses as libzstd does at level 3 with one thread, in a process
// beside this one; where there is no zstd, as Go's does.
func compressor(to io.Writer, f *os.File) (io.WriteCloser, error) {
	path, err := exec.LookPath("zstd")
	if err != nil {
		return zstd.NewWriter(to, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(3)), zstd.WithEncoderConcurrency(1))
	}
	cmd := exec.Command(path, "-q", "-c", "-3", "--single-thread")
	cmd.Stdout, cmd.Stderr = f, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &process{in, cmd}, cmd.Start()
}

// process is a filter's input.
type process struct {
	io.WriteCloser
	cmd *exec.Cmd
}

// Close ends the input and waits until the output is complete.
func (p *process) Close() error { return errors.Join(p.WriteCloser.Close(), p.cmd.Wait()) }

func (a *archives) close() error {
	if a.end == nil {
		return nil
	}
	end := a.end
	a.end = nil
	return end()
}

// finish syncs everything.
func (a *archives) finish() error {
	err := a.close()
	for _, f := range a.written {
		err = errors.Join(err, f.Sync(), f.Close())
	}
	d, derr := os.Open(a.o.dir)
	if derr != nil {
		return errors.Join(err, derr)
	}
	return errors.Join(err, d.Sync(), d.Close())
}
