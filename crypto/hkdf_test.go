package crypto

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"testing"

	"pgregory.net/rapid"
)

// RFC 5869 appendix A, cases 1 and 3. Ours ends after 32 bytes, which is T(1). The
// salt of case 2 is longer than a block, which no salt of ours is.
func TestHKDFVectors(t *testing.T) {
	for _, c := range []struct{ name, ikm, salt, info, prk, okm string }{
		{"A.1", "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "000102030405060708090a0b0c", "f0f1f2f3f4f5f6f7f8f9",
			"077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
			"3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"},
		{"A.3", "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "-", "-",
			"19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
			"8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"},
	} {
		t.Run(c.name, func(t *testing.T) {
			prk := extract(unhex(t, c.salt), unhex(t, c.ikm))
			if want := unhex(t, c.prk); !bytes.Equal(prk[:], want) {
				t.Errorf("prk = %x, want %x", prk, want)
			}
			okm := expandLabel(&prk, string(unhex(t, c.info)))
			if want := unhex(t, c.okm); !bytes.Equal(okm[:], want) {
				t.Errorf("okm = %x, want %x", okm, want)
			}
		})
	}
}

func TestRecordKeyIsHKDF(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parent := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "parent"))
		salt := Salt(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "salt"))
		context := rapid.SliceOfN(rapid.Byte(), 0, 1200).Draw(t, "context")
		cut := rapid.IntRange(0, len(context)).Draw(t, "cut")
		got := recordKey(&parent, &salt, "segment", 0x0102030405060708, [][]byte{context[:cut], context[cut:]})

		info := "sealdisk/v1 segment\x00\x01\x02\x03\x04\x05\x06\x07\x08" + string(context)
		want, err := hkdf.Key(sha256.New, parent[:], salt[:], info, 32)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:], want) {
			t.Fatalf("got %x, want %x", got[:], want)
		}
	})
}
