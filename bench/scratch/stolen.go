package scratch

import (
	"bytes"
	"os"
	"strconv"
)

// Stolen tells how many ticks this machine's processors had since its start, and
// how many of them a host gave to others: what is measured meanwhile says
// little. Both are 0 where that cannot be told.
func Stolen() (ticks, stolen int64) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	// cpu user nice system idle iowait irq softirq steal guest guest_nice; the
	// guests' are in user and nice.
	fields := bytes.Fields(line)
	for i := 1; i < min(len(fields), 9); i++ {
		n, err := strconv.ParseInt(string(fields[i]), 10, 64)
		if err != nil {
			return 0, 0
		}
		if ticks += n; i == 8 {
			stolen = n
		}
	}
	return ticks, stolen
}
