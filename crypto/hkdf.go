package crypto

import (
	"crypto/sha256"
	"encoding/binary"
)

// HKDF with SHA-256 (RFC 5869) for keys of at most 64 bytes and an output of 32.
// It is written out, because crypto/hkdf allocates 19 times for each record key;
// this does not, and a test holds the two equal.

const hashBlock = 64

// message is what HMAC hashes first: room for the padded key, then the text. Room
// for 512 bytes stays on the stack; a longer one costs an allocation.
type message []byte

// hmacSum is HMAC-SHA-256 (RFC 2104) over m[hashBlock:]. It overwrites m[:hashBlock].
func hmacSum(key []byte, m message) [32]byte {
	var outer [hashBlock + sha256.Size]byte
	for i := range hashBlock {
		var b byte
		if i < len(key) {
			b = key[i]
		}
		m[i] = b ^ 0x36
		outer[i] = b ^ 0x5c
	}
	inner := sha256.Sum256(m)
	copy(outer[hashBlock:], inner[:])
	return sha256.Sum256(outer[:])
}

// extract is HKDF-Extract (RFC 5869 §2.2).
func extract(salt, ikm []byte) [32]byte {
	m := make(message, hashBlock, 128)
	return hmacSum(salt, append(m, ikm...))
}

// expandLabel is HKDF-Expand to 32 bytes with a label as the info.
func expandLabel(prk *[32]byte, label string) [32]byte {
	m := make(message, hashBlock, 128)
	m = append(m, label...)
	return hmacSum(prk[:], append(m, 1))
}

// expandParent is HKDF-Expand to the parent key i.
func expandParent(prk *[32]byte, i int) [32]byte {
	m := make(message, hashBlock, 128)
	m = append(m, labelParent...)
	m = binary.BigEndian.AppendUint16(m, uint16(i))
	return hmacSum(prk[:], append(m, 1))
}

// recordKey is the last step of the schedule, shared with the catalogue.
func recordKey(parent *[32]byte, salt *Salt, purpose string, r Region, context [][]byte) Key {
	prk := extract(salt[:], parent[:])
	m := make(message, hashBlock, hashBlock+512)
	m = append(m, labelPrefix...)
	m = append(m, purpose...)
	m = append(m, 0)
	m = binary.BigEndian.AppendUint64(m, uint64(r))
	for _, c := range context {
		m = append(m, c...)
	}
	return hmacSum(prk[:], append(m, 1))
}
