//go:build !linux

package volume

// SyncData makes a file's content and size durable.
func SyncData(f File) error { return f.Sync() }

// StartSync could have a part of a file written to disk ahead of a later sync.
func StartSync(File, int64, int64) {}
