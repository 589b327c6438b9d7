package wal

import "slices"

// NewMap returns an empty map, for what is known of a range otherwise than by
// reading its records.
func NewMap() *Map { return newMap() }

// AddBlock notes that a block was changed.
func (m *Map) AddBlock(f RelFile, block uint32) { m.file(f).Blocks.add(block) }

// AddLimit notes that a file was cut to so many blocks at some time: those from
// there on count as changed. Blocks that are in the map stay in it.
func (m *Map) AddLimit(f RelFile, limit uint32) {
	c := m.file(f)
	c.Limit = min(c.Limit, limit)
}

// Include adds what another map says, whatever the order of the two: what is
// changed in either is changed.
func (m *Map) Include(o *Map) {
	for f, c := range o.files {
		m.AddLimit(f, c.Limit)
		to := m.file(f)
		for b := range c.Blocks.All() {
			to.Blocks.add(b)
		}
	}
	m.Databases = slices.Concat(m.Databases, o.Databases)
	m.Tablespaces = slices.Concat(m.Tablespaces, o.Tablespaces)
	m.Settings = slices.Concat(m.Settings, o.Settings)
	m.Unknown = slices.Concat(m.Unknown, o.Unknown)
}
