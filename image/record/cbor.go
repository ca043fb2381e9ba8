package record

import (
	"bytes"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/sealdisk/sealdisk/blockstore"
)

// cborModes returns the one encoding and the strict decoding of docs/format.md.
// What the decoder lets through beside it differs after re-encoding.
var cborModes = sync.OnceValues(func() (cbor.EncMode, cbor.DecMode) {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	enc, err := o.EncMode()
	if err != nil {
		panic("record: cbor: " + err.Error())
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   8,
		MaxArrayElements:  1 << 17,
		MaxMapPairs:       1 << 12,
	}.DecMode()
	if err != nil {
		panic("record: cbor: " + err.Error())
	}
	return enc, dec
})

func encode(what string, v any) ([]byte, error) {
	enc, _ := cborModes()
	b, err := enc.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("record: seal %s: %w", what, err)
	}
	return b, nil
}

// decode decodes b into v, a pointer, and checks that v encodes to exactly b.
func decode(what string, b []byte, v any) error {
	_, dec := cborModes()
	if err := dec.Unmarshal(b, v); err != nil {
		return &blockstore.CorruptError{What: what, Cause: err}
	}
	again, err := encode(what, v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, b) {
		return corrupt(what, "not in the one deterministic encoding")
	}
	return nil
}

// nanoseconds since 1970, as records keep time.
func nanoseconds(t time.Time) (uint64, error) {
	if ns := t.UnixNano(); ns >= 0 && time.Unix(0, ns).Equal(t) {
		return uint64(ns), nil
	}
	return 0, fmt.Errorf("time %v is not between 1970 and 2262", t)
}

func fromNanoseconds(ns uint64) (time.Time, error) {
	if ns > math.MaxInt64 {
		return time.Time{}, fmt.Errorf("time %d ns is after 2262", ns)
	}
	return time.Unix(0, int64(ns)).UTC(), nil
}
