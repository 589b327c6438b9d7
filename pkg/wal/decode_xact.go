package wal

// The bits of xinfo, which say what follows the time of a commit or abort.
// Part of the format (access/xact.h).
const (
	xactHasDBInfo       = 1 << 0
	xactHasSubxacts     = 1 << 1
	xactHasRelFiles     = 1 << 2
	xactHasInvals       = 1 << 3
	xactHasTwophase     = 1 << 4
	xactHasOrigin       = 1 << 5
	xactHasGID          = 1 << 7
	xactHasDroppedStats = 1 << 8 // 15+
)

const (
	relFileSize      = 12 // RelFileLocator
	invalidationSize = 16 // SharedInvalidationMessage
)

// transaction decodes the records of resource manager Transaction.
func (d *decoder) transaction(r *Record) Detail {
	switch r.Info & xactOpMask {
	case xactCommit, xactCommitPrepared:
		return d.commit(r)
	case xactAbort, xactAbortPrepared:
		// An abort has the parts of a commit, without invalidations.
		return (*Abort)(d.commit(r))
	case xactPrepare:
		return d.prepare()
	}
	return nil
}

// commit decodes xl_xact_commit or xl_xact_abort. The parts are not padded.
func (d *decoder) commit(r *Record) *Commit {
	c := &Commit{XID: r.XID, Origin: r.Origin}
	c.Time = d.timestamp()
	if r.Info&xactHasInfo == 0 {
		return c
	}
	c.XInfo = d.u32()
	if c.XInfo&xactHasDBInfo != 0 {
		c.Database, c.Tablespace = d.u32(), d.u32()
	}
	if c.XInfo&xactHasSubxacts != 0 {
		c.Subtransactions = d.u32s(d.count(4))
	}
	if c.XInfo&xactHasRelFiles != 0 {
		c.Dropped = d.relFiles(d.count(relFileSize))
	}
	if c.XInfo&xactHasDroppedStats != 0 && d.format.xactStats > 0 {
		d.skip(d.count(d.format.xactStats) * d.format.xactStats)
	}
	if c.XInfo&xactHasInvals != 0 {
		d.skip(d.count(invalidationSize) * invalidationSize)
	}
	if c.XInfo&xactHasTwophase != 0 {
		c.XID, c.Prepared = d.u32(), true
		if c.XInfo&xactHasGID != 0 {
			c.GID = d.text()
		}
	}
	if c.XInfo&xactHasOrigin != 0 {
		c.OriginLSN, c.OriginTime = d.lsn(), d.timestamp()
	}
	return c
}

// prepare decodes xl_xact_prepare, whose header and parts are each padded to
// eight bytes: the record is the state file that a checkpoint would write.
func (d *decoder) prepare() Detail {
	p := &Prepare{}
	d.skip(8) // magic, total length
	p.XID = d.u32()
	p.Database = d.u32()
	p.Time = d.timestamp()
	p.Owner = d.u32()
	subs, commits, aborts := d.u32(), d.u32(), d.u32()
	if d.format.xactStats > 0 {
		d.skip(8) // counts of dropped statistics
	}
	d.skip(4 + 1) // number of invalidations, initfileinval
	d.align(2)
	gidLen := int(d.u16())
	d.skip(16) // origin position and time
	p.GID = cString(d.take(gidLen))
	d.align(8)
	p.Subtransactions = d.u32s(d.bound(subs, 4))
	d.align(8)
	p.CommitDrops = d.relFiles(d.bound(commits, relFileSize))
	d.align(8)
	p.AbortDrops = d.relFiles(d.bound(aborts, relFileSize))
	return p
}

// cString returns b without its closing zero byte.
func cString(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	return string(b)
}
