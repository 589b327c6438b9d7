package wal

import (
	"iter"
	"math/bits"
)

const (
	blocksPerChunk = 4096 // one bit each: 512 bytes stand for 32 MB of an 8 KB-block file
	wordsPerChunk  = blocksPerChunk / 64
)

type blockChunk [wordsPerChunk]uint64

// BlockSet is a set of block numbers: a bitmap in chunks, of which only those
// are kept that have a member. The zero value is empty.
type BlockSet struct {
	chunks []*blockChunk
	n      int
}

// add puts the block into the set.
func (s *BlockSet) add(block uint32) {
	i := int(block / blocksPerChunk)
	if i >= len(s.chunks) || s.chunks[i] == nil {
		s.grow(i)
	}
	word := &s.chunks[i][block%blocksPerChunk/64]
	if bit := uint64(1) << (block % 64); *word&bit == 0 {
		*word |= bit
		s.n++
	}
}

func (s *BlockSet) grow(i int) {
	for len(s.chunks) <= i {
		s.chunks = append(s.chunks, nil)
	}
	s.chunks[i] = new(blockChunk)
}

// truncate removes the blocks from limit on.
func (s *BlockSet) truncate(limit uint32) {
	keep := int(limit / blocksPerChunk)
	if keep >= len(s.chunks) {
		return
	}
	if c := s.chunks[keep]; c != nil && limit%blocksPerChunk != 0 {
		w := limit % blocksPerChunk / 64
		c[w] &= 1<<(limit%64) - 1
		clear(c[w+1:])
		keep++
	}
	clear(s.chunks[keep:])
	s.chunks = s.chunks[:keep]
	s.n = 0
	for _, c := range s.chunks {
		s.n += c.count()
	}
}

// union adds all blocks of o, and may take over parts of it.
func (s *BlockSet) union(o *BlockSet) {
	for len(s.chunks) < len(o.chunks) {
		s.chunks = append(s.chunks, nil)
	}
	for i, from := range o.chunks {
		to := s.chunks[i]
		switch {
		case from == nil:
		case to == nil:
			s.chunks[i] = from
			s.n += from.count()
		default:
			for w, v := range from {
				s.n += bits.OnesCount64(v &^ to[w])
				to[w] |= v
			}
		}
	}
}

func (c *blockChunk) count() int {
	if c == nil {
		return 0
	}
	n := 0
	for _, w := range c {
		n += bits.OnesCount64(w)
	}
	return n
}

// Contains reports whether the block is in the set.
func (s *BlockSet) Contains(block uint32) bool {
	i := int(block / blocksPerChunk)
	return i < len(s.chunks) && s.chunks[i] != nil && s.chunks[i][block%blocksPerChunk/64]>>(block%64)&1 != 0
}

// Len returns the number of blocks in the set.
func (s *BlockSet) Len() int { return s.n }

// All yields the blocks in ascending order.
func (s *BlockSet) All() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for i, c := range s.chunks {
			if c == nil {
				continue
			}
			for w, v := range c {
				for ; v != 0; v &= v - 1 {
					if !yield(uint32(i*blocksPerChunk + w*64 + bits.TrailingZeros64(v))) {
						return
					}
				}
			}
		}
	}
}

// Ranges yields the runs of consecutive blocks in ascending order: the first
// block and how many.
func (s *BlockSet) Ranges() iter.Seq2[uint32, uint32] {
	return func(yield func(first, n uint32) bool) {
		var first, n uint32
		for b := range s.All() {
			if n > 0 && b == first+n {
				n++
				continue
			}
			if n > 0 && !yield(first, n) {
				return
			}
			first, n = b, 1
		}
		if n > 0 {
			yield(first, n)
		}
	}
}
