package volume

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"strconv"
	"time"
	"unicode/utf8"

	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// ManifestFileName is where a backup keeps PostgreSQL's backup manifest.
const ManifestFileName = "backup_manifest"

// Manifest is PostgreSQL's backup_manifest, as pg_verifybackup reads it: JSON,
// one line per file, and at the end the SHA-256 of all the lines before the
// last.
//
//	{ "PostgreSQL-Backup-Manifest-Version": 2,
//	"System-Identifier": 7412345678901234567,
//	"Files": [
//	{ "Path": "base/1/1247", "Size": 122880, "Last-Modified": "2026-11-21 22:50:01 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "9a7d5d68" },
//	{ "Encoded-Path": "66ff", "Size": 3, "Last-Modified": "2026-11-21 22:50:01 GMT" }
//	],
//	"WAL-Ranges": [
//	{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }
//	],
//	"Manifest-Checksum": "..."}
//
// Version 1 (13 to 16) has no System-Identifier. A path that is not UTF-8 is
// written in hexadecimal. A CRC-32C is written with its least significant byte
// first.
type Manifest struct {
	Version          int
	SystemIdentifier uint64 // version 2 and up
	Files            []ManifestFile
	WALRanges        []ManifestRange
}

// ManifestFile is one file of a backup.
type ManifestFile struct {
	Path      string
	Size      int64
	ModTime   time.Time
	Algorithm ChecksumAlgorithm // empty where the file has no checksum
	Checksum  []byte
}

// ManifestRange is WAL that a backup needs.
type ManifestRange struct {
	Timeline timeline.ID `json:"Timeline"`
	Start    wal.LSN     `json:"Start-LSN"`
	End      wal.LSN     `json:"End-LSN"`
}

// ManifestVersion returns the version of the manifest that a major version of
// the server writes and reads.
func ManifestVersion(major int) int {
	if major >= 17 {
		return 2
	}
	return 1
}

// ChecksumAlgorithm is a manifest's name for a file checksum.
type ChecksumAlgorithm string

// The algorithms. CRC32C is the server's default.
const (
	ChecksumCRC32C ChecksumAlgorithm = "CRC32C"
	ChecksumSHA224 ChecksumAlgorithm = "SHA224"
	ChecksumSHA256 ChecksumAlgorithm = "SHA256"
	ChecksumSHA384 ChecksumAlgorithm = "SHA384"
	ChecksumSHA512 ChecksumAlgorithm = "SHA512"
)

// New returns a hash whose Sum is what the manifest holds, in hexadecimal. It
// returns an error for an unknown algorithm.
func (a ChecksumAlgorithm) New() (hash.Hash, error) {
	switch a {
	case ChecksumCRC32C:
		return &crcHash{crc32.New(castagnoli)}, nil
	case ChecksumSHA224:
		return sha256.New224(), nil
	case ChecksumSHA256:
		return sha256.New(), nil
	case ChecksumSHA384:
		return sha512.New384(), nil
	case ChecksumSHA512:
		return sha512.New(), nil
	}
	return nil, fmt.Errorf("unknown checksum algorithm %q", string(a))
}

// crcHash is a CRC-32C whose Sum has the byte order of the manifest.
type crcHash struct{ hash.Hash32 }

func (h *crcHash) Sum(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, h.Sum32()) }

const manifestTime = "2006-01-02 15:04:05 GMT"

// ManifestWriter writes a manifest file by file, so that a backup of millions
// of files need not keep them in memory.
type ManifestWriter struct {
	out     *bufio.Writer
	sum     hash.Hash
	version int
	files   int
	ranges  int
	err     error
}

// NewManifestWriter begins a manifest of the given version.
func NewManifestWriter(w io.Writer, version int, systemIdentifier uint64) *ManifestWriter {
	sum := sha256.New()
	m := &ManifestWriter{out: bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10), sum: sum, version: version}
	if version != 1 && version != 2 {
		m.err = fmt.Errorf("backup manifest: unknown version %d", version)
	}
	m.printf("{ \"PostgreSQL-Backup-Manifest-Version\": %d,\n", version)
	if version >= 2 {
		m.printf("\"System-Identifier\": %d,\n", systemIdentifier)
	}
	m.printf("\"Files\": [")
	return m
}

func (m *ManifestWriter) printf(format string, args ...any) {
	if m.err == nil {
		_, m.err = fmt.Fprintf(m.out, format, args...)
	}
}

// AddFile writes the line of one file. All files come before the first range.
func (m *ManifestWriter) AddFile(f ManifestFile) error {
	if m.ranges > 0 && m.err == nil {
		m.err = errors.New("backup manifest: a file after the WAL ranges")
	}
	m.printf("%s{ ", separator(m.files))
	m.files++
	if utf8.ValidString(f.Path) {
		m.printf("\"Path\": %s, ", appendJSON(nil, f.Path))
	} else {
		m.printf("\"Encoded-Path\": \"%x\", ", f.Path)
	}
	m.printf("\"Size\": %d, \"Last-Modified\": \"%s\"", f.Size, f.ModTime.UTC().Format(manifestTime))
	if f.Algorithm != "" {
		m.printf(", \"Checksum-Algorithm\": \"%s\", \"Checksum\": \"%x\"", f.Algorithm, f.Checksum)
	}
	m.printf(" }")
	return m.err
}

// AddRange writes a range of WAL that the backup needs.
func (m *ManifestWriter) AddRange(r ManifestRange) error {
	if m.ranges == 0 {
		m.printf("\n],\n\"WAL-Ranges\": [")
	}
	m.printf("%s{ \"Timeline\": %d, \"Start-LSN\": \"%s\", \"End-LSN\": \"%s\" }",
		separator(m.ranges), uint32(r.Timeline), r.Start, r.End)
	m.ranges++
	return m.err
}

func separator(n int) string {
	if n == 0 {
		return "\n"
	}
	return ",\n"
}

// Close ends the manifest with its checksum. It does not close the writer
// below.
func (m *ManifestWriter) Close() error {
	if m.ranges == 0 {
		m.printf("\n],\n\"WAL-Ranges\": [")
	}
	m.printf("\n],\n")
	if m.err == nil {
		m.err = m.out.Flush()
	}
	sum := m.sum.Sum(nil)
	m.printf("\"Manifest-Checksum\": \"%x\"}\n", sum)
	if m.err == nil {
		m.err = m.out.Flush()
	}
	return m.err
}

// appendJSON quotes a string as the server does: only what JSON demands is
// escaped.
func appendJSON(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= ' ':
			b = append(b, c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\b':
			b = append(b, `\b`...)
		case c == '\f':
			b = append(b, `\f`...)
		default:
			b = fmt.Appendf(b, `\u%04x`, c)
		}
	}
	return append(b, '"')
}

// Format returns the whole manifest.
func (m *Manifest) Format() ([]byte, error) {
	var b bytes.Buffer
	w := NewManifestWriter(&b, m.Version, m.SystemIdentifier)
	for _, f := range m.Files {
		if err := w.AddFile(f); err != nil {
			return nil, err
		}
	}
	for _, r := range m.WALRanges {
		if err := w.AddRange(r); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// ErrManifestChecksum is returned when a manifest is not what was written.
var ErrManifestChecksum = errors.New("backup manifest: checksum does not match its content")

// ParseManifest reads a manifest and verifies its own checksum.
func ParseManifest(data []byte) (*Manifest, error) { return parseManifest(data, true) }

func parseManifest(data []byte, verify bool) (*Manifest, error) {
	body, err := manifestBody(data)
	if err != nil {
		return nil, err
	}
	var j manifestJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return nil, fmt.Errorf("backup manifest: %w", err)
	}
	if j.Version != 1 && j.Version != 2 {
		return nil, fmt.Errorf("backup manifest: unknown version %d", j.Version)
	}
	sum := sha256.Sum256(body)
	if verify && j.Checksum != hex.EncodeToString(sum[:]) {
		return nil, ErrManifestChecksum
	}
	m := &Manifest{Version: j.Version, WALRanges: j.WALRanges, Files: make([]ManifestFile, len(j.Files))}
	if j.SystemIdentifier != "" {
		if m.SystemIdentifier, err = strconv.ParseUint(j.SystemIdentifier.String(), 10, 64); err != nil {
			return nil, fmt.Errorf("backup manifest: system identifier: %w", err)
		}
	}
	for i, f := range j.Files {
		if m.Files[i], err = f.file(); err != nil {
			return nil, fmt.Errorf("backup manifest: file %d: %w", i+1, err)
		}
	}
	return m, nil
}

// manifestBody returns the part of the manifest that its checksum covers: up
// to the line feed before the last line.
func manifestBody(data []byte) ([]byte, error) {
	if len(data) == 0 || data[len(data)-1] != '\n' {
		return nil, errors.New("backup manifest: the last line does not end")
	}
	end := bytes.LastIndexByte(data[:len(data)-1], '\n')
	if end < 0 {
		return nil, errors.New("backup manifest: fewer than two lines")
	}
	return data[:end+1], nil
}

// manifestJSON is the file as JSON has it.
type manifestJSON struct {
	Version          int             `json:"PostgreSQL-Backup-Manifest-Version"`
	SystemIdentifier json.Number     `json:"System-Identifier"`
	Files            []manifestEntry `json:"Files"`
	WALRanges        []ManifestRange `json:"WAL-Ranges"`
	Checksum         string          `json:"Manifest-Checksum"`
}

type manifestEntry struct {
	Path        *string           `json:"Path"`
	EncodedPath *string           `json:"Encoded-Path"`
	Size        int64             `json:"Size"`
	ModTime     string            `json:"Last-Modified"`
	Algorithm   ChecksumAlgorithm `json:"Checksum-Algorithm"`
	Checksum    string            `json:"Checksum"`
}

func (e manifestEntry) file() (ManifestFile, error) {
	f := ManifestFile{Size: e.Size, Algorithm: e.Algorithm}
	switch {
	case (e.Path == nil) == (e.EncodedPath == nil):
		return f, errors.New("needs one of Path and Encoded-Path")
	case e.Path != nil:
		f.Path = *e.Path
	default:
		name, err := hex.DecodeString(*e.EncodedPath)
		if err != nil {
			return f, fmt.Errorf("Encoded-Path: %w", err)
		}
		f.Path = string(name)
	}
	if e.Size < 0 {
		return f, fmt.Errorf("%q: size %d", f.Path, e.Size)
	}
	var err error
	if e.ModTime != "" {
		if f.ModTime, err = time.Parse(manifestTime, e.ModTime); err != nil {
			return f, fmt.Errorf("%q: %w", f.Path, err)
		}
	}
	if e.Algorithm == "" {
		return f, nil
	}
	h, err := e.Algorithm.New()
	if err != nil {
		return f, fmt.Errorf("%q: %w", f.Path, err)
	}
	if f.Checksum, err = hex.DecodeString(e.Checksum); err != nil || len(f.Checksum) != h.Size() {
		return f, fmt.Errorf("%q: %q is no %s checksum", f.Path, e.Checksum, e.Algorithm)
	}
	return f, nil
}
