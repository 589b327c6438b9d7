//go:build !linux

package volume

// SyncData makes a file's content and size durable.
func SyncData(f File) error { return f.Sync() }
