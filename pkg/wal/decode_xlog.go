package wal

import "bytes"

// xlog decodes the records of resource manager XLOG (catalog/pg_control.h,
// access/xlog_internal.h).
func (d *decoder) xlog(op uint8) Detail {
	switch op {
	case xlogCheckpointShutdown, xlogCheckpointOnline:
		return d.checkpoint(op == xlogCheckpointShutdown)
	case xlogCheckpointRedo:
		if d.format.checkpointWAL {
			return &CheckpointRedo{WALLevel: WALLevel(d.u32())}
		}
	case xlogSwitch:
		return &Switch{}
	case xlogBackupEnd:
		return &BackupEnd{Start: d.lsn()}
	case xlogParameterChange:
		return d.parameterChange()
	case xlogRestorePoint:
		return d.restorePoint()
	case xlogFPWChange:
		return &FullPageWrites{On: d.bool()}
	case xlogEndOfRecovery:
		return d.endOfRecovery()
	case xlogOverwriteContrecord:
		return &OverwriteContrecord{Overwritten: d.lsn(), Time: d.timestamp()}
	}
	return nil
}

// checkpoint decodes CheckPoint. 17 put wal_level into what had been padding.
func (d *decoder) checkpoint(shutdown bool) Detail {
	c := &Checkpoint{Shutdown: shutdown, HasWALLevel: d.format.checkpointWAL}
	c.Redo = d.lsn()
	c.Timeline = TimelineID(d.u32())
	c.PrevTimeline = TimelineID(d.u32())
	c.FullPageWrites = d.bool()
	if c.HasWALLevel {
		d.align(4)
		c.WALLevel = WALLevel(d.u32())
	}
	d.align(8)
	c.NextXID = d.u64()
	c.NextOID = d.u32()
	c.NextMulti = d.u32()
	c.NextMultiOffset = d.u32()
	c.OldestXID = d.u32()
	c.OldestXIDDatabase = d.u32()
	c.OldestMulti = d.u32()
	c.OldestMultiDatabase = d.u32()
	d.align(8)
	c.Time = d.unixTime()
	c.OldestCommitTsXID = d.u32()
	c.NewestCommitTsXID = d.u32()
	c.OldestActiveXID = d.u32()
	return c
}

// endOfRecovery decodes xl_end_of_recovery.
func (d *decoder) endOfRecovery() Detail {
	e := &EndOfRecovery{HasWALLevel: d.format.checkpointWAL}
	e.Time = d.timestamp()
	e.Timeline = TimelineID(d.u32())
	e.PrevTimeline = TimelineID(d.u32())
	if e.HasWALLevel {
		e.WALLevel = WALLevel(d.u32())
	}
	return e
}

// parameterChange decodes xl_parameter_change.
func (d *decoder) parameterChange() Detail {
	return &ParameterChange{
		MaxConnections:       int32(d.u32()),
		MaxWorkerProcesses:   int32(d.u32()),
		MaxWALSenders:        int32(d.u32()),
		MaxPreparedXacts:     int32(d.u32()),
		MaxLocksPerXact:      int32(d.u32()),
		WALLevel:             WALLevel(d.u32()),
		WALLogHints:          d.bool(),
		TrackCommitTimestamp: d.bool(),
	}
}

// restorePoint decodes xl_restore_point: a time and a name in 64 bytes (MAXFNAMELEN).
func (d *decoder) restorePoint() Detail {
	p := &RestorePoint{Time: d.timestamp()}
	name, _, _ := bytes.Cut(d.take(64), []byte{0})
	p.Name = string(name)
	return p
}
