package repo

import (
	"context"
	"fmt"
	"sync"
)

// Pack sizes. A pack ends when it has either.
const (
	DefaultFrameBytes = 1 << 20
	DefaultPackBytes  = 32 << 20 // stored
	packBlocks        = 32768
	// openUploads is how many packs may be on their way to the disk behind the
	// one that is being filled.
	openUploads = 2
)

// frame is where blocks are gathered before they are compressed. Once it is
// placed, pack and first say where its blocks are.
type frame struct {
	raw    []byte
	blocks []blockInfo

	placed bool
	pack   int32
	first  uint32
}

// packer puts frames into packs. Frames are compressed by whoever fills them,
// outside of the lock, and written one after another.
type packer struct {
	ctx       context.Context
	cluster   *Cluster
	id        string
	level     Level
	blockSize uint32
	packBytes int64
	key       *contentKey        // nil: in the clear
	newPack   func(p Pack) int32 // gives a pack its number in the manifest
	endPack   func(n int32, p Pack)
	durable   func(count int) // the pack that was begun as number count is durable

	mu      sync.Mutex
	cur     *objectWriter
	up      *upload
	name    string
	number  int32
	count   int
	stored  int64 // bytes of the finished packs
	closing sync.WaitGroup
	slots   chan struct{}
	errMu   sync.Mutex
	err     error
}

func (p *packer) init() { p.slots = make(chan struct{}, openUploads) }

// add compresses a frame and writes it. It sets the frame's place.
func (p *packer) add(f *frame) error {
	z := getBuffer(0)
	defer putBuffer(z)
	*z = compress(p.level, f.raw, (*z)[:0])

	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.failed(); err != nil {
		return err
	}
	if p.cur == nil {
		if err := p.begin(); err != nil {
			return err
		}
	}
	f.pack, f.first = p.number, uint32(len(p.cur.blocks))
	if err := p.cur.add(*z, f.blocks); err != nil {
		p.fail(err)
		return err
	}
	if p.cur.off >= p.packBytes || len(p.cur.blocks) >= packBlocks {
		return p.end()
	}
	return nil
}

// begin starts a pack.
func (p *packer) begin() error {
	p.count++
	p.name = packName(p.id, p.count)
	h := p.cluster.packHeader(p.name, p.blockSize)
	if p.key != nil {
		h.Hash = hashHMAC
	}
	p.up = startUpload(p.ctx, p.cluster.driver, h.Name)
	obj, err := newObjectWriter(p.up, h, p.key)
	if err != nil {
		p.up.abort()
		p.up = nil
		p.fail(err)
		return err
	}
	p.cur = obj
	p.number = p.newPack(Pack{Name: p.name})
	return nil
}

// end writes the pack's index and leaves the wait for the disk to a goroutine.
func (p *packer) end() error {
	obj, up := p.cur, p.up
	p.cur, p.up = nil, nil
	if err := obj.finish(); err != nil {
		up.abort()
		p.fail(err)
		return err
	}
	p.stored += obj.off
	p.endPack(p.number, Pack{Name: p.name, Size: obj.off, Blocks: uint32(len(obj.blocks))})
	name, count := p.name, p.count
	p.slots <- struct{}{}
	p.closing.Go(func() {
		defer func() { <-p.slots }()
		if err := up.close(); err != nil {
			p.fail(fmt.Errorf("storing pack %s: %w", name, err))
			return
		}
		p.durable(count)
	})
	return nil
}

// finish ends the last pack and waits until all of them are durable.
func (p *packer) finish() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cur != nil && p.failed() == nil {
		if err := p.end(); err != nil {
			return err
		}
	}
	p.closing.Wait()
	return p.failed()
}

// abort gives up the open pack and waits for the others.
func (p *packer) abort() {
	p.fail(errAborted)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.up != nil {
		p.up.abort()
		p.up, p.cur = nil, nil
	}
	p.closing.Wait()
}

func (p *packer) fail(err error) {
	p.errMu.Lock()
	defer p.errMu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

func (p *packer) failed() error {
	p.errMu.Lock()
	defer p.errMu.Unlock()
	return p.err
}
