// Package catalog reads names from the files of a cluster whose server is
// stopped: its databases, and the schemas and relations of each. Nothing is
// started and nothing is written, so it works on a crashed cluster too, as of
// what is on disk.
//
// The rows of a catalog lie in heap pages (storage/bufpage.h, access/htup_details.h):
//
//	page    offset size
//	             0   24  header, see package volume
//	            24    4  line pointers up to "lower": offset (15 bits), state (2), length (15)
//
//	tuple   offset size
//	             0    4  xmin, the transaction that inserted it
//	             4    4  xmax, the one that deleted or locked it
//	             8    4  cid
//	            12    6  ctid
//	            18    2  infomask2
//	            20    2  infomask
//	            22    1  hoff: where the columns begin
//
// Up to their first column of variable length these catalogs have columns of
// fixed length that are never null, at offsets that one table below holds per
// version: pg_class, pg_namespace, pg_database, pg_authid (catalog/pg_*.h).
//
// Where a catalog lies is said by pg_class itself, and for the few that cannot
// be found so by pg_filenode.map (utils/cache/relmapper.c): a magic number, a
// count, and pairs of OID and file number.
//
// Which versions of rows count is told by the hint bits in infomask, else by
// pg_xact: two bits a transaction (access/clog.c).
package catalog
