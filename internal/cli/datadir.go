package cli

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/alecthomas/kong"
)

// dataDirMapper decodes a data directory: a path, made absolute, or one on
// another host.
type dataDirMapper struct{}

// Decode implements kong.Mapper.
func (dataDirMapper) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	t, err := ctx.Scan.PopValue("directory")
	if err != nil {
		return err
	}
	dir, ok := t.Value.(string)
	if !ok {
		return fmt.Errorf("a directory is a text, not %v", t.Value)
	}
	if dir != "" && !strings.Contains(dir, "://") {
		dir = kong.ExpandPath(dir)
	}
	target.SetString(dir)
	return nil
}
