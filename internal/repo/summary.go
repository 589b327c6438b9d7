package repo

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"tidemark/pkg/wal"
)

// The manifest's format. Part of the format, do not change.
const (
	manifestFormat  = "tidemark manifest"
	manifestVersion = 1
)

// Summary is what a backup's manifest says about the backup as a whole. Sizes
// are in bytes. It is the last line of the manifest.
type Summary struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	Tool    string `json:"tool"` // program and version that wrote it

	ID    string     `json:"id"`
	Label string     `json:"label,omitempty"` // the operator's words
	Type  BackupType `json:"type"`
	// Parent is the backup that blocks were compared with. Nothing depends on
	// its being kept.
	Parent string `json:"parent,omitempty"`

	SystemID       SystemID `json:"system_identifier"`
	Major          int      `json:"major"`
	ControlVersion uint32   `json:"control_version"`
	CatalogVersion uint32   `json:"catalog_version"`
	BlockSize      uint32   `json:"block_size"`
	WALSegmentSize uint32   `json:"wal_segment_size"`
	Checksums      bool     `json:"data_checksums"` // the cluster has data checksums

	Start Point `json:"start"` // redo of the checkpoint that the copy began after
	// Checkpoint is the position of that checkpoint's record.
	Checkpoint wal.LSN `json:"checkpoint"`
	Stop       Point   `json:"stop"` // replay to here makes the copy consistent

	Began    time.Time `json:"began"`
	Finished time.Time `json:"finished"`
	// Expires is when the backup may go, whatever the policy says; nil leaves
	// it to the policy.
	Expires *time.Time `json:"expires,omitempty"`

	Source Origin `json:"source"`

	Tablespaces []Tablespace `json:"tablespaces,omitempty"`
	Databases   []Database   `json:"databases,omitempty"` // their names, at most MaxDatabases
	WAL         []WALRange   `json:"wal"`                 // the segments that a restore needs at least
	// Tail is the last segment, where WAL does not list it: the backup holds it
	// up to Stop, at TailPath, and it is the last of its files.
	Tail string `json:"wal_tail,omitempty"`
	// TailHash is the hash of that segment up to Stop.
	TailHash Hash     `json:"wal_tail_hash,omitzero"`
	History  []string `json:"history,omitempty"`

	Files       int64 `json:"files"`
	ClusterSize int64 `json:"cluster_size"` // of all files
	Blocks      int64 `json:"blocks"`
	ZeroBlocks  int64 `json:"zero_blocks"`
	OldBlocks   int64 `json:"old_blocks"` // referenced, stored by an earlier backup
	NewBlocks   int64 `json:"new_blocks"` // stored by this backup
	// ResumedBlocks are those of the new ones that an interrupted backup had stored.
	ResumedBlocks int64 `json:"resumed_blocks,omitempty"`
	NewSize       int64 `json:"new_size"`            // of the new blocks before compression
	ReadSize      int64 `json:"read_size,omitempty"` // of what was read from the source
	// Hashed is when every block was read and hashed last: later backups took
	// blocks over unread that the WAL proves unchanged. Zero: by this backup.
	Hashed time.Time `json:"hashed,omitzero"`
	// Proof says what proved that: "wal" or "wal summaries".
	Proof      string `json:"proof,omitempty"`
	StoredSize int64  `json:"stored_size"` // of this backup's packs
	PackCount  int    `json:"packs"`       // that the manifest names

	// Findings are the blocks whose checksum was wrong when they were read,
	// at most MaxFindings of them; FindingCount is their true number.
	Findings     []Finding `json:"findings,omitempty"`
	FindingCount int64     `json:"finding_count"`

	// What a restore writes besides the files: pg_control as it has to be, and
	// the text of backup_label and tablespace_map.
	Control       []byte `json:"control"`
	BackupLabel   string `json:"backup_label"`
	TablespaceMap string `json:"tablespace_map,omitempty"`

	Encryption *Encryption `json:"encryption,omitempty"` // where the packs are encrypted

	// Where the table of packs begins: a block number of the manifest object.
	PackTable uint32 `json:"pack_table"`

	// ManifestSize is the size of the manifest object. It is not part of the
	// manifest; reading it fills it in.
	ManifestSize int64 `json:"-"`
}

// SameAs tells whether two repositories have one backup, whatever each stored
// of it: both begin and end at the same moments and points, with the same
// control file, so what a restore replays to is the same.
func (s *Summary) SameAs(o *Summary) bool {
	return s.SystemID == o.SystemID && s.Start == o.Start && s.Checkpoint == o.Checkpoint && s.Stop == o.Stop &&
		s.Began.Equal(o.Began) && s.Finished.Equal(o.Finished) && bytes.Equal(s.Control, o.Control)
}

// MaxFindings bounds the list of findings in a summary.
const MaxFindings = 1000

// BackupType says how a backup was made. Both kinds restore alone.
type BackupType string

// The types.
const (
	Full        BackupType = "full"        // every block was stored
	Incremental BackupType = "incremental" // blocks that did not change are referenced
)

// encryptionScheme is what this version writes: frames under AES-256-GCM,
// content keys wrapped by age.
const encryptionScheme = "age+aes256gcm"

// Encryption says how a backup's packs are encrypted.
type Encryption struct {
	Scheme     string `json:"scheme"`      // age+aes256gcm
	Epoch      string `json:"epoch"`       // the vault key that this backup's content key is wrapped for
	CompareKey string `json:"compare_key"` // which key the block hashes are made with
}

// SystemID is a system identifier, a string in JSON: it does not fit a
// double-precision number.
type SystemID uint64

// Point is a position in the WAL of one timeline.
type Point struct {
	LSN      wal.LSN        `json:"lsn"`      // position
	Timeline wal.TimelineID `json:"timeline"` // on which timeline
}

func (p Point) String() string { return fmt.Sprintf("%s on timeline %d", p.LSN, p.Timeline) }

// WALRange is a run of segments of one timeline, both ends included.
type WALRange struct {
	Timeline wal.TimelineID `json:"timeline"` // of the segments
	First    string         `json:"first"`    // file name of the first
	Last     string         `json:"last"`     // and of the last
}

// Origin says where a backup was taken from.
type Origin struct {
	Host   string `json:"host,omitempty"`           // where the command ran
	Data   string `json:"data_directory,omitempty"` // of the server
	Role   string `json:"role"`                     // of the server: primary or standby
	Access string `json:"access"`                   // how it was read: files, sql, ssh or stream
	Server string `json:"server"`                   // its version in full
}

// Tablespace is a tablespace as it was when the backup was taken.
type Tablespace struct {
	OID  uint32 `json:"oid"` // its number
	Path string `json:"path"`
	Name string `json:"name,omitempty"`
}

// MaxDatabases bounds the list of names in a summary.
const MaxDatabases = 10000

// Database is a database's name as it was when the backup was taken.
type Database struct {
	OID  uint32 `json:"oid"` // its number
	Name string `json:"name"`
}

// Finding is a block that was found damaged while it was backed up.
type Finding struct {
	Path     string  `json:"path"`               // file, relative to the data directory
	Block    uint32  `json:"block"`              // in the relation fork, over all its segments
	Relation string  `json:"relation,omitempty"` // database.schema.name, where it could be found out
	Found    uint16  `json:"found"`              // the checksum in the page
	Expected uint16  `json:"expected"`           // the checksum that its content has
	LSN      wal.LSN `json:"page_lsn"`           // the position in the page's header
}

// MarshalText writes decimal digits.
func (s SystemID) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d", uint64(s)), nil }

// UnmarshalText reads decimal digits.
func (s *SystemID) UnmarshalText(b []byte) error {
	id, err := parseSystemID(string(b))
	*s = SystemID(id)
	return err
}

// Validate checks what a reader relies on.
func (s *Summary) Validate() error {
	switch {
	case s.Format != manifestFormat:
		return errors.New("not a manifest")
	case s.Version != manifestVersion:
		return fmt.Errorf("manifest version %d: %w", s.Version, ErrUnknownFormat)
	case s.Encryption != nil && s.Encryption.Scheme != encryptionScheme:
		return fmt.Errorf("encrypted as %q: %w", s.Encryption.Scheme, ErrUnknownFormat)
	case s.BlockSize < 1024 || s.BlockSize > 32768 || s.BlockSize&(s.BlockSize-1) != 0:
		return fmt.Errorf("block size %d", s.BlockSize)
	case !wal.SegmentSize(s.WALSegmentSize).Valid():
		return fmt.Errorf("WAL segment size %d", s.WALSegmentSize)
	case s.Start.Timeline == 0 || s.Stop.Timeline == 0 || s.Stop.LSN < s.Start.LSN:
		return fmt.Errorf("range from %s to %s", s.Start, s.Stop)
	}
	return nil
}

// Took is how long the backup took.
func (s *Summary) Took() time.Duration { return s.Finished.Sub(s.Began) }
