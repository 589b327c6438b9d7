package wal

import "testing"

func TestMapInclude(t *testing.T) {
	a, b := NewMap(), NewMap()
	f, g := RelFile{1663, 5, 16384, ForkMain}, RelFile{1663, 5, 16385, ForkMain}
	a.AddBlock(f, 7)
	a.AddLimit(f, 5)
	b.AddLimit(f, 9)
	b.AddBlock(f, 3)
	b.AddBlock(g, 1)
	b.Databases = append(b.Databases, DatabaseEvent{Create: &DatabaseCreate{Database: 4}})
	a.Include(b)
	c := a.Lookup(f)
	if c.Limit != 5 || !c.Blocks.Contains(7) || !c.Blocks.Contains(3) || c.Blocks.Len() != 2 || a.Lookup(g).Limit != NoLimit || !a.Lookup(g).Blocks.Contains(1) || len(a.Databases) != 1 {
		t.Errorf("%+v", c)
	}
}
