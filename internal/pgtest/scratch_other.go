//go:build !linux

package pgtest

// memoryDir returns the directory of a file system in memory with enough room,
// or "" where none is known.
func memoryDir() string { return "" }
