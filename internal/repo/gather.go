package repo

import "slices"

// gather copies blocks into the frame that is being filled. It returns that
// frame when it is full: the caller compresses it.
func (w *BackupWriter) gather(blocks [][]byte, hashes []Hash) (p part, full *frame, took int) {
	w.fillMu.Lock()
	defer w.fillMu.Unlock()
	if w.fill == nil {
		w.fill = &frame{raw: *getBuffer(0)}
	}
	f := w.fill
	p = part{kind: newBlocks, frame: f, index: uint32(len(f.blocks))}
	for _, b := range blocks {
		if len(f.raw)+len(b) > w.o.FrameBytes && len(f.raw) > 0 {
			break
		}
		f.raw = append(f.raw, b...)
		f.blocks = append(f.blocks, blockInfo{uint32(len(b)), hashes[took]})
		took++
	}
	p.count, p.hashes = int64(took), slices.Clone(hashes[:took])
	if took < len(blocks) || len(f.raw) >= w.o.FrameBytes {
		full, w.fill = f, nil
	}
	return p, full, took
}

// place compresses a full frame and puts it into a pack.
func (w *BackupWriter) place(f *frame) error {
	if err := w.packs.add(f); err != nil {
		return err
	}
	raw := f.raw
	w.mu.Lock()
	f.placed = true
	f.raw, f.blocks = nil, nil
	w.mu.Unlock()
	putBuffer(&raw)
	return w.drain()
}

// flushFill places the frame that is being filled.
func (w *BackupWriter) flushFill() error {
	w.fillMu.Lock()
	f := w.fill
	w.fill = nil
	w.fillMu.Unlock()
	if f == nil {
		return nil
	}
	return w.place(f)
}

// drain writes the entries at the head of the queue that are complete, and
// remembers them for the next part.
func (w *BackupWriter) drain() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.drainQueue(); err != nil {
		return err
	}
	w.snapshot()
	return nil
}

// drainQueue is drain without a part; mu is held.
func (w *BackupWriter) drainQueue() error {
	for len(w.queue) > 0 && !w.done {
		f := w.queue[0]
		if !f.closed || !f.placed() {
			return nil
		}
		w.queue[0] = nil
		w.queue = w.queue[1:]
		if f.gone {
			continue
		}
		w.line = appendFile(w.line[:0], f.entryOf(&w.totals))
		if err := w.fileLine(f.entry.Path, w.line); err != nil {
			return err
		}
		if f.stored {
			w.parts.text = append(w.parts.text, w.line...)
		}
	}
	return nil
}
