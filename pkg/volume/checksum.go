package volume

import (
	"encoding/binary"
)

// The page checksum of PostgreSQL (storage/checksum_impl.h): 32 independent
// FNV-1a-like hashes ("lanes") run over the page, lane j taking every 32nd
// 32-bit little-endian word from word j on. One step of a lane is
//
//	x = sum ^ word;  sum = x*16777619 ^ x>>17
//
// After the last word two more steps with a zero word mix the high bits down,
// the lanes are XORed together and with the block number, and the result is
// reduced to 1..65535. The page's own checksum field counts as zero.
//
// The offset and prime are part of the format, do not change.
const (
	checksumPrime  = 16777619
	checksumLanes  = 32
	checksumOffset = 8 // of pd_checksum in the page header
)

var checksumBasis = [checksumLanes]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// laneGroup is how many lanes run side by side in registers. Each lane is a
// chain of dependent multiplications, so a few of them are needed to keep the
// multiplier busy; more than the machine has registers would spill.
const laneGroup = 8

// Checksum returns the checksum that a page has as block blkno of its fork.
// blkno counts over the fork's segments. The page's length must be a multiple
// of 128 bytes, as every block size is; the checksum field in it is ignored.
func Checksum(page []byte, blkno uint32) uint16 {
	if len(page) < PageHeaderSize || len(page)%(4*checksumLanes) != 0 {
		return 0 // no page has this checksum
	}
	// The checksum field is the low half of word 2. Lane 2's first step is
	// taken with what is really there and corrected by cancelling it out of
	// the lane's basis: sum ^ word is all that the step sees of either.
	stored := uint32(binary.LittleEndian.Uint16(page[checksumOffset:]))
	var sum uint32
	for g := 0; g < checksumLanes; g += laneGroup {
		basis := (*[laneGroup]uint32)(checksumBasis[g:])
		var own uint32
		if g == 0 {
			own = stored
		}
		sum ^= sumLanes(page[4*g:], basis, own)
	}
	return uint16((sum^blkno)%65535 + 1)
}

// sumLanes runs one group of lanes over the page and returns their XOR.
// skip is cancelled out of the first word of the group's lane 2.
func sumLanes(page []byte, basis *[laneGroup]uint32, skip uint32) uint32 {
	s0, s1, s2, s3 := basis[0], basis[1], basis[2]^skip, basis[3]
	s4, s5, s6, s7 := basis[4], basis[5], basis[6], basis[7]
	const row = 4 * checksumLanes
	for len(page) >= 4*laneGroup {
		w := (*[4 * laneGroup]byte)(page)
		a := binary.LittleEndian.Uint64(w[0:])
		b := binary.LittleEndian.Uint64(w[8:])
		s0 ^= uint32(a)
		s1 ^= uint32(a >> 32)
		s2 ^= uint32(b)
		s3 ^= uint32(b >> 32)
		s0 = s0*checksumPrime ^ s0>>17
		s1 = s1*checksumPrime ^ s1>>17
		s2 = s2*checksumPrime ^ s2>>17
		s3 = s3*checksumPrime ^ s3>>17
		c := binary.LittleEndian.Uint64(w[16:])
		d := binary.LittleEndian.Uint64(w[24:])
		s4 ^= uint32(c)
		s5 ^= uint32(c >> 32)
		s6 ^= uint32(d)
		s7 ^= uint32(d >> 32)
		s4 = s4*checksumPrime ^ s4>>17
		s5 = s5*checksumPrime ^ s5>>17
		s6 = s6*checksumPrime ^ s6>>17
		s7 = s7*checksumPrime ^ s7>>17
		if len(page) < row {
			break
		}
		page = page[row:]
	}
	return settle(s0) ^ settle(s1) ^ settle(s2) ^ settle(s3) ^ settle(s4) ^ settle(s5) ^ settle(s6) ^ settle(s7)
}

// settle does a lane's two closing steps.
func settle(s uint32) uint32 {
	s = s*checksumPrime ^ s>>17
	return s*checksumPrime ^ s>>17
}
