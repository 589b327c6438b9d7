package volume

// Bits of infomask, which lies TupleInfomask bytes behind the start of a row
// version's header (access/htup_details.h). Part of the format; the same in 13
// to 18.
const (
	HeapXmaxLockOnly  = 0x0080 // xmax locked the row and changed nothing
	HeapXminCommitted = 0x0100
	HeapXminInvalid   = 0x0200 // with HeapXminCommitted: frozen
	HeapXmaxCommitted = 0x0400
	HeapXmaxInvalid   = 0x0800
	HeapXmaxIsMulti   = 0x1000

	TupleInfomask   = 20 // offset, two bytes
	TupleHeaderSize = 23 // bytes; a map of nulls and padding follow
)
