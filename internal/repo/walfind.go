package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// HasWAL reports whether the archive holds a WAL file.
func (c *Cluster) HasWAL(ctx context.Context, name string) (bool, error) {
	f, err := parseWALName(name)
	if err != nil {
		return false, err
	}
	return c.has(ctx, c.walObject(f).Name)
}

// has reports whether an object is in the store.
func (c *Cluster) has(ctx context.Context, name string) (bool, error) {
	obj, err := c.driver.Get(ctx, name, 0, 0)
	if errors.Is(err, ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, obj.Close()
}

// WALObject tells which object the archive holds under the name of a WAL file,
// by the hash of its index. ErrNotArchived where it holds none.
func (c *Cluster) WALObject(ctx context.Context, name string) (Hash, error) {
	f, err := parseWALName(name)
	if err != nil {
		return Hash{}, err
	}
	h := c.walObject(f)
	obj, err := c.driver.Get(ctx, h.Name, -trailerLength, trailerLength)
	if errors.Is(err, ErrNotExist) {
		return Hash{}, fmt.Errorf("%s: %w", name, ErrNotArchived)
	}
	if err != nil {
		return Hash{}, err
	}
	defer obj.Close()
	var b [trailerLength]byte
	if _, err := io.ReadFull(obj, b[:]); err != nil {
		return Hash{}, &CorruptError{Object: h.Name, Offset: -1, Part: "index", Reason: "it is cut short", Err: err}
	}
	return Hash(b[8 : 8+HashSize]), nil
}
