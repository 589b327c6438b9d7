package repo

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"filippo.io/age"
)

// Encryption of an object. Part of the format, do not change.
//
// The key of an object comes from the content key of its backup (or of its
// WAL file), a salt of its own and its name. Nothing is ever sealed twice under
// it: names are written once, and a second attempt has another salt. So the
// nonce of a frame is its number.
//
//	key, index key = HKDF-SHA-256(content key, salt, keyInfo + name), 64 bytes
//	frame          = AES-256-GCM(key, nonce = number LE32 + 8 zero bytes,
//	                 additional data = header block + number LE32 + blocks LE32)
//	index seal     = HMAC-SHA-256(index key, SHA-256 of the index before it), 16 bytes
//
// The envelope in the header says how to get at the content key:
//
//	 0   8  epoch: which vault key it is wrapped for
//	 8  16  salt
//	24  ..  an age file; its content is the content key (32), and for packs
//	        the key of the block hashes (32) behind it
const (
	keySize        = 32
	epochSize      = 8
	saltSize       = 16
	envelopeFixed  = epochSize + saltSize
	gcmTag         = 16
	sealSize       = 16
	keyInfo        = "tidemark object key\x00"
	compareIDInfo  = "tidemark compare key\x00"
	flagEncrypted  = 1
	hashHMAC       = 2 // HMAC-SHA-256, the first 16 bytes
	maxEnvelope    = 16 << 10
	maxContentKeys = 1024 // kept in memory
)

// contentKey encrypts what one backup, or one WAL file, stores.
type contentKey struct {
	epoch   [epochSize]byte
	data    [keySize]byte
	compare [keySize]byte // of the block hashes; zero for WAL files
	wrapped []byte        // an age file
}

// newContentKey makes a random key and wraps it for the vault.
func newContentKey(epoch [epochSize]byte, vault age.Recipient, compare *[keySize]byte) (*contentKey, error) {
	k := &contentKey{epoch: epoch}
	if _, err := rand.Read(k.data[:]); err != nil {
		return nil, err
	}
	payload := k.data[:]
	if compare != nil {
		k.compare = *compare
		payload = append(bytes.Clone(payload), compare[:]...)
	}
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, vault)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(payload); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	k.wrapped = buf.Bytes()
	return k, nil
}

// envelope returns the envelope of a new object under the key.
func (k *contentKey) envelope() ([]byte, error) {
	e := make([]byte, envelopeFixed, envelopeFixed+len(k.wrapped))
	copy(e, k.epoch[:])
	if _, err := rand.Read(e[epochSize:envelopeFixed]); err != nil {
		return nil, err
	}
	return append(e, k.wrapped...), nil
}

// unwrapContentKey opens an envelope with the vault's identities.
func unwrapContentKey(envelope []byte, vault []age.Identity) (*contentKey, error) {
	r, err := age.Decrypt(bytes.NewReader(envelope[envelopeFixed:]), vault...)
	if err != nil {
		return nil, err
	}
	payload, err := io.ReadAll(io.LimitReader(r, 2*keySize+1))
	if err != nil {
		return nil, err
	}
	if len(payload) != keySize && len(payload) != 2*keySize {
		return nil, fmt.Errorf("a content key of %d bytes", len(payload))
	}
	k := &contentKey{epoch: [epochSize]byte(envelope)}
	copy(k.data[:], payload)
	copy(k.compare[:], payload[keySize:])
	return k, nil
}

// sealer encrypts and decrypts the frames of one object.
type sealer struct {
	aead     cipher.AEAD
	indexKey []byte
	header   []byte // the header block
	hash     func([]byte) Hash
}

// newSealer derives the keys of the object with header h.
func newSealer(k *contentKey, h header) (*sealer, error) {
	salt := h.Envelope[epochSize:envelopeFixed]
	derived, err := hkdf.Key(sha256.New, k.data[:], salt, keyInfo+h.Name, 2*keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived[:keySize])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	s := &sealer{aead: aead, indexKey: derived[keySize:], header: h.append(nil), hash: HashBlock}
	if h.Hash == hashHMAC {
		s.hash = newBlockHasher(k.compare).sum
	}
	return s, nil
}

// bound returns the nonce and the additional data of a frame.
func (s *sealer) bound(number, blocks int) (nonce, aad []byte) {
	nonce = make([]byte, s.aead.NonceSize())
	binary.LittleEndian.PutUint32(nonce, uint32(number))
	aad = make([]byte, 0, len(s.header)+8)
	aad = append(aad, s.header...)
	aad = binary.LittleEndian.AppendUint32(aad, uint32(number))
	return nonce, binary.LittleEndian.AppendUint32(aad, uint32(blocks))
}

// seal encrypts a frame in place as far as its capacity allows.
func (s *sealer) seal(number, blocks int, frame []byte) []byte {
	nonce, aad := s.bound(number, blocks)
	return s.aead.Seal(frame[:0], nonce, frame, aad)
}

var errNotAuthentic = errors.New("it was changed, or encrypted with another key")

// open decrypts a frame.
func (s *sealer) open(number, blocks int, stored []byte) ([]byte, error) {
	nonce, aad := s.bound(number, blocks)
	plain, err := s.aead.Open(stored[:0], nonce, stored, aad)
	if err != nil {
		return nil, errNotAuthentic
	}
	return plain, nil
}

// sealIndex returns the seal of an index, given the SHA-256 of it.
func (s *sealer) sealIndex(sum [sha256.Size]byte) [sealSize]byte {
	m := hmac.New(sha256.New, s.indexKey)
	m.Write(sum[:])
	return [sealSize]byte(m.Sum(nil))
}

// blockHasher hashes blocks with a key: without it nobody can try whether a
// guessed block is in the repository.
type blockHasher struct{ pool sync.Pool }

func newBlockHasher(key [keySize]byte) *blockHasher {
	b := &blockHasher{}
	b.pool.New = func() any { return hmac.New(sha256.New, key[:]) }
	return b
}

func (b *blockHasher) sum(block []byte) Hash {
	m := b.pool.Get().(hash.Hash)
	m.Reset()
	m.Write(block)
	var out [sha256.Size]byte
	h := Hash(m.Sum(out[:0])[:HashSize])
	b.pool.Put(m)
	return h
}

// compareKeyID names a key of block hashes without telling it.
func compareKeyID(key [keySize]byte) string {
	h := HashBlock(append([]byte(compareIDInfo), key[:]...))
	return Hash(h).String()[:16]
}
