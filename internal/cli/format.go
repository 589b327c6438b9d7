package cli

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
)

// Integer is what a size may be held in.
type Integer interface {
	~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64
}

// Bytes formats a size in IEC units: 512 B, 12 MiB, 1.5 GiB.
func Bytes[T Integer](n T) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}

// Count formats a number with thousands separated.
func Count[T Integer](n T) string { return humanize.Comma(int64(n)) }

// Rate formats bytes over a time: 85 MiB/s.
func Rate[T Integer](n T, d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return Bytes(int64(float64(n)/d.Seconds())) + "/s"
}

// Duration formats a time span at the precision people read it:
// 250 ms, 1.2 s, 3 min 4 s, 2 h 5 min, 3 d 4 h.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + Duration(-d)
	case d < 999500*time.Microsecond:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	case d < 59950*time.Millisecond:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	s := int64(d.Round(time.Second).Seconds())
	switch {
	case s < 3600:
		return two(s/60, "min", s%60, "s")
	case s < 86400:
		return two(s/3600, "h", s%3600/60, "min")
	}
	return two(s/86400, "d", s%86400/3600, "h")
}

func two(a int64, au string, b int64, bu string) string {
	if b == 0 {
		return fmt.Sprintf("%d %s", a, au)
	}
	return fmt.Sprintf("%d %s %d %s", a, au, b, bu)
}

// Time formats a moment in local time, to the second, with its zone.
func Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}

// Plural formats a count with its noun: 1 row, 2 rows.
func Plural[T Integer](n T, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return Count(n) + " " + many
}
