package cli

import (
	"github.com/dustin/go-humanize"

	"tidemark/internal/exit"
)

// ByteSize is a number of bytes, given as "1048576", "64MB" (decimal) or "64MiB".
type ByteSize int64

// UnmarshalText reads what people write.
func (b *ByteSize) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || int64(n) < 0 {
		return exit.New(exit.Usage, "such as 64MB or 64MiB", "%q is not a number of bytes", text)
	}
	*b = ByteSize(n)
	return nil
}
