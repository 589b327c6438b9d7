package repo

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
)

// checkStored reads the frames of an object front to back and compares their
// checksums with the index, without decoding them.
func (x *objectIndex) checkStored(ctx context.Context, d Driver) error {
	if err := x.checkHeader(ctx, d); err != nil || len(x.frames) == 0 {
		return err
	}
	last := x.frames[len(x.frames)-1]
	from := x.frames[0].offset
	obj, err := d.Get(ctx, x.path, from, last.offset+int64(last.stored)-from)
	if err != nil {
		return err
	}
	defer obj.Close()
	buf := getBuffer(0)
	defer putBuffer(buf)
	for _, f := range x.frames {
		if cap(*buf) < int(f.stored) {
			*buf = make([]byte, f.stored)
		}
		*buf = (*buf)[:f.stored]
		_, err := io.ReadFull(obj, *buf)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return err
		}
		if err != nil || crc32.Checksum(*buf, castagnoli) != f.crc {
			return &CorruptError{Object: x.path, Offset: f.offset, Part: "frame", Reason: "its checksum does not match", Err: err}
		}
	}
	return nil
}
