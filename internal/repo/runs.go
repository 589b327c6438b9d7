package repo

import "slices"

// runCursor finds the run of a block, quickly where blocks ascend, and with
// marks wherever they are.
type runCursor struct {
	runs  []Run
	i     int
	begin int64 // the block at which runs[i] begins
	marks runMarks
}

// runMarks are the blocks at which every markEvery-th run of a file begins. A
// table that was backed up often while it changed here and there has a run for
// every few blocks.
type runMarks []int64

const markEvery = 64

// marksOf marks a file's runs; few of them need none.
func marksOf(runs []Run) runMarks {
	if len(runs) <= markEvery {
		return nil
	}
	marks := make(runMarks, 0, len(runs)/markEvery+1)
	begin := int64(0)
	for i, r := range runs {
		if i%markEvery == 0 {
			marks = append(marks, begin)
		}
		begin += int64(r.Count)
	}
	return marks
}

// seek returns the run that holds block n and how far into it n lies. n must
// be a block of the file.
func (c *runCursor) seek(n int64) (Run, int64) {
	if next := c.i/markEvery + 1; n < c.begin || next < len(c.marks) && n >= c.marks[next] {
		c.i, c.begin = 0, 0
		if c.marks != nil {
			k, found := slices.BinarySearch(c.marks, n)
			if !found {
				k--
			}
			c.i, c.begin = k*markEvery, c.marks[k]
		}
	}
	for n >= c.begin+int64(c.runs[c.i].Count) {
		c.begin += int64(c.runs[c.i].Count)
		c.i++
	}
	return c.runs[c.i], n - c.begin
}
