package wal

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a byte position in the write-ahead log of one cluster
// (XLogRecPtr, access/xlogdefs.h). Zero is the invalid position.
type LSN uint64

// ParseLSN reads the server's notation, two hexadecimal halves of at most
// eight digits each: "0/16B3748". Trailing text is an error.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	h, okh := parseHex32(hi)
	l, okl := parseHex32(lo)
	if !ok || !okh || !okl {
		return 0, fmt.Errorf("invalid LSN %q: want two hexadecimal numbers as in 0/16B3748", s)
	}
	return LSN(h)<<32 | LSN(l), nil
}

// parseHex32 accepts one to eight hexadecimal digits and nothing else; strconv
// alone would also take signs and underscores.
func parseHex32(s string) (uint32, bool) {
	if len(s) == 0 || len(s) > 8 {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F') {
			return 0, false
		}
	}
	v, err := strconv.ParseUint(s, 16, 32)
	return uint32(v), err == nil
}

// String formats the position as the server does: no leading zeros.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// MarshalText formats the position as String does.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (l *LSN) UnmarshalText(b []byte) error {
	v, err := ParseLSN(string(b))
	if err != nil {
		return err
	}
	*l = v
	return nil
}

// Align rounds the position up to the next multiple of eight, where the next
// record begins unless a page ends there.
func (l LSN) Align() LSN { return (l + 7) &^ 7 }

// TimelineID numbers a timeline. The first is 1, zero is invalid.
type TimelineID uint32

// String formats the timeline in decimal, as the server's messages do.
func (t TimelineID) String() string { return strconv.FormatUint(uint64(t), 10) }
