package crypto

import (
	"bytes"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Neither mode changes after start-up.
var (
	cborEnc = must(cbor.CoreDetEncOptions().EncMode())
	cborDec = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   4,
		MaxArrayElements:  maxEpochs,
		MaxMapPairs:       16,
	}.DecMode())
)

// The array limit above serves both lists; this fails to compile if they part.
const _ = uint(maxEpochs-maxRecipients) + uint(maxRecipients-maxEpochs)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// decodeCBOR decodes all of b into v. Whatever the decoder is lenient about
// (missing keys, integer widths, order) shows when v is encoded again: docs/format.md
// allows one encoding only.
func decodeCBOR(b []byte, v any) error {
	if err := cborDec.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: CBOR", ErrFormat)
	}
	again, err := cborEnc.Marshal(v)
	if err != nil || !bytes.Equal(again, b) {
		return fmt.Errorf("%w: CBOR is not deterministic", ErrFormat)
	}
	return nil
}

func encodeCBOR(v any) ([]byte, error) {
	b, err := cborEnc.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("crypto: encode: %w", err)
	}
	return b, nil
}
