// Package wal reads the write-ahead log of PostgreSQL 13 to 18: file names,
// pages, records, what records do, and the map of the blocks that a range of the
// log changes. It reads from a Source of segments and knows nothing of
// directories or timelines' histories.
//
// # Layout
//
// The log is one long run of bytes, addressed by LSN. It is stored in segment
// files of equal size, and each segment consists of pages (XLOG_BLCKSZ, 8 KB).
// All numbers are little-endian. A page begins with a header
// (access/xlog_internal.h, XLogPageHeaderData):
//
//	offset size
//	     0    2  magic          which major version wrote it, see Format
//	     2    2  info           1 the page begins inside a record
//	                            2 the header is the long one
//	                            4 backup blocks may be removed
//	                            8 the page begins with the record that replaces one cut off
//	     4    4  timeline
//	     8    8  address        LSN of the page's first byte
//	    16    4  remaining      bytes of the record begun before that are still to come
//	    20    4  padding
//
// and, on the first page of a segment (XLogLongPageHeaderData), goes on with
//
//	24    8  system identifier
//	32    4  segment size
//	36    4  page size
//
// Records begin at multiples of eight, right behind the one before. One that
// does not fit goes on behind the header of the next page, over as many pages
// and segments as it takes; only its first eight bytes are sure to be on one
// page. A record (access/xlogrecord.h) is
//
//	 0    4  length         of all of it
//	 4    4  transaction
//	 8    8  prev           LSN of the record before
//	16    1  info           upper half: what it does; 1 unlogged file changes; 2 check images
//	17    1  resource manager
//	18    2  padding
//	20    4  CRC-32C        of what follows, then of the 20 bytes before
//	24       headers, then the data that they announce, in the same order
//
// The headers are, each beginning with a byte that tells which it is:
//
//	0-32  a block:     number, flags (fork in the low half; 10 image, 20 data,
//	                   40 will be initialised, 80 same relation as before), data length (2);
//	                   with an image: length (2), offset of the hole (2), info (1),
//	                   and if it is compressed with a hole: length of the hole (2);
//	                   unless the relation is the same: tablespace, database, relation (4 each);
//	                   block number (4)
//	 252  top-level transaction (4), from 14 on
//	 253  replication origin (2)
//	 254  main data: length (4), the last header
//	 255  main data: length (1), the last header
//
// The bits of an image's info byte changed in 15, see Format.
//
// # How a log ends
//
// Nothing marks the end. Behind the last record there are zeros, or pages of an
// older segment whose file was used again, or no file. Reader tells three things
// apart, each with its position and its cause:
//
//   - EndOfLog: every record is whole, and none follows.
//   - TornTail: a record begins and was not written to its end, and nothing
//     valid follows. This is what a crash leaves. The server ends recovery here
//     as well.
//   - Corruption: a record cannot be read, and the log goes on behind it: a page
//     further on in this segment, or the next segment's first page, or a whole
//     record on the same page is in its place.
//
// So a flipped bit in the last record looks like the torn tail that it cannot be
// told from. The other way round, a loss of power that kept later pages and lost
// an earlier one looks like corruption; that errs on the side of refusing.
// Whoever knows where the log must reach at least (the control file does, and
// a backup) should compare.
//
// A record that was cut off by a crash may be followed by more log: 14 (and
// later releases of 13) set a flag on the next page and write an
// OVERWRITE_CONTRECORD there. The reader goes on with it, having checked that it
// names the record cut off.
package wal
