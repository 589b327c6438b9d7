package rewind

import "iter"

// xidSet is a set of transaction numbers. Those that lie close together, as
// lost ones do, take a bit each.
type xidSet map[uint32]*xidPage

// xidPage are 4096 numbers.
type xidPage [64]uint64

func (s xidSet) add(xid uint32) {
	p := s[xid/4096]
	if p == nil {
		p = &xidPage{}
		s[xid/4096] = p
	}
	p[xid%4096/64] |= 1 << (xid % 64)
}

func (s xidSet) has(xid uint32) bool {
	p := s[xid/4096]
	return p != nil && p[xid%4096/64]&(1<<(xid%64)) != 0
}

// all yields the numbers, in no certain order.
func (s xidSet) all() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for n, p := range s {
			for i := range uint32(4096) {
				if p[i/64]&(1<<(i%64)) != 0 && !yield(n*4096+i) {
					return
				}
			}
		}
	}
}

// pile holds many values, and never moves them: a slice that grows is copied,
// and there twice for a while.
type pile[T any] struct{ chunks [][]T }

const pileChunk = 4096

func (p *pile[T]) add(v T) {
	if k := len(p.chunks) - 1; k < 0 || len(p.chunks[k]) == pileChunk {
		p.chunks = append(p.chunks, nil)
	}
	last := &p.chunks[len(p.chunks)-1]
	*last = append(*last, v)
}

func (p *pile[T]) len() int {
	n := 0
	for _, c := range p.chunks {
		n += len(c)
	}
	return n
}

// all yields the values in the order in which they came.
func (p *pile[T]) all() iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for _, c := range p.chunks {
			for i := range c {
				if !yield(&c[i]) {
					return
				}
			}
		}
	}
}
