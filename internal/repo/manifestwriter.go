package repo

import (
	"encoding/json"
	"io"
)

// manifestWriter writes a manifest's lines.
type manifestWriter struct {
	obj *objectWriter
	buf []byte // text that is not in a frame yet
	z   []byte
}

func newManifestWriter(w io.Writer, h header) (*manifestWriter, error) {
	obj, err := newObjectWriter(w, h, nil)
	return &manifestWriter{obj: obj}, err
}

// line appends one line, which ends in a newline.
func (m *manifestWriter) line(b []byte) error {
	m.buf = append(m.buf, b...)
	for len(m.buf) >= manifestBlock {
		if err := m.frame(m.buf[:manifestBlock]); err != nil {
			return err
		}
		m.buf = m.buf[:copy(m.buf, m.buf[manifestBlock:])]
	}
	return nil
}

// section ends a section: the next line begins a block, whose number it returns.
func (m *manifestWriter) section() (uint32, error) {
	if len(m.buf) > 0 {
		if err := m.frame(m.buf); err != nil {
			return 0, err
		}
		m.buf = m.buf[:0]
	}
	return uint32(len(m.obj.blocks)), nil
}

func (m *manifestWriter) frame(text []byte) error {
	m.z = compress(LevelGood, text, m.z[:0])
	return m.obj.add(m.z, []blockInfo{{uint32(len(text)), HashBlock(text)}})
}

// finish writes the packs, the summary and the index.
func (m *manifestWriter) finish(packs []Pack, s *Summary) error {
	return m.end(packs, func(table uint32) any { s.PackTable = table; return s })
}

// end writes the packs, what last returns, told where they begin, and the index.
func (m *manifestWriter) end(packs []Pack, last func(table uint32) any) error {
	table, err := m.section()
	if err != nil {
		return err
	}
	for i := range packs {
		b, err := json.Marshal(&packs[i])
		if err != nil {
			return err
		}
		if err := m.line(append(b, '\n')); err != nil {
			return err
		}
	}
	if _, err := m.section(); err != nil {
		return err
	}
	b, err := json.Marshal(last(table))
	if err != nil {
		return err
	}
	if err := m.line(append(b, '\n')); err != nil {
		return err
	}
	if _, err := m.section(); err != nil {
		return err
	}
	return m.obj.finish()
}
