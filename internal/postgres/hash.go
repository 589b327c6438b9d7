package postgres

import (
	"context"
	"fmt"

	"tidemark/internal/blockcopy"
)

var _ blockcopy.Hasher = (*ServerSource)(nil)

// hashing reads a piece once and hashes its blocks: sha256 is built in, and
// what travels are digests. A file that does not exist has none.
const hashing = `
SELECT (SELECT string_agg(substr(sha256(substr(piece.data, at, $4)), 1, $5), ''::bytea ORDER BY at)
	FROM generate_series(1, length(piece.data), $4) AS at)
FROM (SELECT pg_read_binary_file(path, start, length, true) AS data
	FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS wanted(path, start, length) OFFSET 0) AS piece`

// Hash has the server read and hash the ranges' blocks. Beyond what Fetch needs
// it takes no privilege.
func (s *ServerSource) Hash(ctx context.Context, ranges []blockcopy.Range, blockSize int64, deliver blockcopy.HashDeliver) error {
	if blockSize <= 0 || blockSize > pieceBytes {
		return fmt.Errorf("hashing blocks of %d bytes is not possible", blockSize)
	}
	pieces, err := cutPieces(ranges, pieceBytes/blockSize*blockSize)
	if err != nil {
		return err
	}
	conn, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer s.release(conn)
	args, err := encodeArgs(conn.TypeMap(), pieces.paths, pieces.starts, pieces.lengths)
	if err != nil {
		return err
	}
	rr := conn.PgConn().ExecParams(ctx, hashing, append(args, fmt.Append(nil, blockSize), fmt.Append(nil, blockcopy.DigestSize)),
		[]uint32{0, 0, 0, int4, int4}, []int16{1, 1, 1, 0, 0}, []int16{1})
	a := hashAnswer{ranges: ranges, pieces: pieces, blockSize: blockSize, deliver: deliver}
	var failed error
	for failed == nil && rr.NextRow() {
		failed = a.row(rr.Values()[0])
	}
	if _, err := rr.Close(); err != nil && failed == nil {
		return s.fault("hashing "+a.at()+" of", err)
	}
	if failed != nil {
		return fmt.Errorf("hashing files of %s: %w", s.name, failed)
	}
	return a.end()
}

// int4 is the type of a length in SQL.
const int4 = 23

// hashPieces are ranges cut into what one row reads.
type hashPieces struct {
	paths           []string
	starts, lengths []int64
	of              []int // index of its range
}

func cutPieces(ranges []blockcopy.Range, most int64) (p hashPieces, err error) {
	for i, r := range ranges {
		if err := blockcopy.CheckPath(r.Path); err != nil {
			return p, err
		}
		for r.Length > 0 {
			n := min(r.Length, most)
			p.paths, p.starts, p.lengths, p.of = append(p.paths, r.Path), append(p.starts, r.Offset), append(p.lengths, n), append(p.of, i)
			r.Offset += n
			r.Length -= n
		}
	}
	return p, nil
}

// hashAnswer puts the rows of one answer together to ranges.
type hashAnswer struct {
	ranges    []blockcopy.Range
	pieces    hashPieces
	blockSize int64
	deliver   blockcopy.HashDeliver

	n       int  // rows so far
	next    int  // the range to be delivered next
	ended   bool // its file has ended
	digests []blockcopy.Digest
}

// at names the file that is read now.
func (a *hashAnswer) at() string {
	if a.n < len(a.pieces.paths) {
		return a.pieces.paths[a.n]
	}
	return "files"
}

func (a *hashAnswer) row(data []byte) error {
	if a.n == len(a.pieces.of) {
		return fmt.Errorf("the server sent more rows than were asked for")
	}
	of, length := a.pieces.of[a.n], a.pieces.lengths[a.n]
	blocks := (length + a.blockSize - 1) / a.blockSize
	if len(data)%blockcopy.DigestSize != 0 || int64(len(data)) > blocks*blockcopy.DigestSize {
		return fmt.Errorf("%s: the server sent %d bytes of digests for %d blocks", a.pieces.paths[a.n], len(data), blocks)
	}
	a.n++
	if err := a.deliverUpTo(of); err != nil {
		return err
	}
	for ; len(data) > 0 && !a.ended; data = data[blockcopy.DigestSize:] {
		a.digests = append(a.digests, blockcopy.Digest(data))
		blocks--
	}
	a.ended = a.ended || blocks > 0
	return nil
}

// deliverUpTo hands over the ranges before the one of index of.
func (a *hashAnswer) deliverUpTo(of int) error {
	for ; a.next < of; a.next++ {
		if err := a.deliver(a.ranges[a.next], a.digests); err != nil {
			return err
		}
		a.digests, a.ended = a.digests[:0], false
	}
	return nil
}

func (a *hashAnswer) end() error {
	if a.n < len(a.pieces.of) {
		return fmt.Errorf("hashing %s: the server sent %d rows of %d", a.at(), a.n, len(a.pieces.of))
	}
	return a.deliverUpTo(len(a.ranges))
}
