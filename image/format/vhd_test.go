package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf16"
)

// vhdChild is a differencing vhd for a test to write.
type vhdChild struct {
	parent   string // path
	names    map[string]string
	plain    string // the name in the header
	size     int64
	sectors  map[int64][]byte
	parentID []byte // nil: the parent's own
}

const testVHDBlock = 2 << 20

func utf16Bytes(s string, order binary.ByteOrder) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, 0, 0)
		order.PutUint16(b[len(b)-2:], u)
	}
	return b
}

// write makes the file: footer, header, locators, table, blocks, footer.
func (c vhdChild) write(t testing.TB, path string) {
	t.Helper()
	parent, err := os.ReadFile(c.parent)
	if err != nil {
		t.Fatal(err)
	}
	foot := bytes.Clone(parent[len(parent)-vhdSector:])
	if c.parentID == nil {
		c.parentID = bytes.Clone(foot[68:84])
	}
	be := binary.BigEndian
	be.PutUint64(foot[16:], vhdSector)
	be.PutUint64(foot[48:], uint64(c.size))
	copy(foot[28:], "win ")
	be.PutUint32(foot[60:], vhdDifferencing)
	foot[68] ^= 0xff // an identity of its own
	be.PutUint32(foot[64:], vhdChecksum(foot, 64))

	blocks := (c.size + testVHDBlock - 1) / testVHDBlock
	head := make([]byte, vhdHeaderSize)
	copy(head, vhdDynCookie)
	be.PutUint64(head[8:], vhdNoOffset)
	be.PutUint32(head[24:], 0x10000)
	be.PutUint32(head[28:], uint32(blocks))
	be.PutUint32(head[32:], testVHDBlock)
	copy(head[40:], c.parentID)
	copy(head[64:576], utf16Bytes(c.plain, be))

	out := append(bytes.Clone(foot), head...)
	slot := 0
	for code, name := range c.names {
		b := utf16Bytes(name, binary.LittleEndian)
		e := out[vhdSector+576+24*slot:]
		copy(e, code)
		be.PutUint32(e[4:], 1)
		be.PutUint32(e[8:], uint32(len(b)))
		be.PutUint64(e[16:], uint64(len(out)))
		out = append(out, append(b, make([]byte, vhdSector-len(b)%vhdSector)...)...)
		slot++
	}
	tableAt := len(out)
	be.PutUint64(out[vhdSector+16:], uint64(tableAt))
	out = append(out, bytes.Repeat([]byte{0xff}, int(blocks*4+511)&^511)...)
	for sector, content := range c.sectors {
		i := sector * vhdSector / testVHDBlock
		entry := out[tableAt+int(4*i):]
		if be.Uint32(entry) == vhdUnused {
			be.PutUint32(entry, uint32(len(out)/vhdSector))
			out = append(out, make([]byte, vhdSector+testVHDBlock)...)
			entry = out[tableAt+int(4*i):]
		}
		block := out[int64(be.Uint32(entry))*vhdSector:]
		within := sector % (testVHDBlock / vhdSector)
		block[within/8] |= 0x80 >> (within % 8)
		copy(block[vhdSector+within*vhdSector:], content)
	}
	header := out[vhdSector : vhdSector+vhdHeaderSize]
	be.PutUint32(header[36:], vhdChecksum(header, 36))
	if err := os.WriteFile(path, append(out, foot...), 0o600); err != nil {
		t.Fatal(err)
	}
}

// testSectors changes some sectors of content and says which.
func testSectors(content []byte, seed byte) map[int64][]byte {
	changes := map[int64][]byte{}
	fresh := testContent(512*16, seed)
	for k, s := range []int64{0, 1, 7, 8, 9, 127, 2047, 2048, 4095, 6144, int64(len(content)/512 - 1)} {
		b := fresh[512*(k%8):][:512]
		if k == 4 {
			b = make([]byte, 512)
		}
		changes[s] = b
		copy(content[512*s:], b)
	}
	return changes
}

func TestVHDDifferencing(t *testing.T) {
	dir := t.TempDir()
	raw, base, mid, top := filepath.Join(dir, "raw"), filepath.Join(dir, "base.vhd"), filepath.Join(dir, "mid.vhd"), filepath.Join(dir, "top.vhd")
	content := testContent(testSize, 2)
	writeSparse(t, raw, content)
	qemuImg(t, "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on", raw, base)

	vhdChild{parent: base, names: map[string]string{"W2ku": `C:\machines\base.vhd`, "W2ru": `.\base.vhd`}, plain: "x", size: testSize,
		sectors: testSectors(content, 3)}.write(t, mid)
	checkSource(t, open(t, mid, Options{}), content)

	// The top is larger than its parent, and finds it by its plain name.
	larger := append(content, make([]byte, 1<<20)...)
	changes := testSectors(larger, 4)
	vhdChild{parent: mid, plain: `D:\elsewhere\mid.vhd`, size: int64(len(larger)), sectors: changes}.write(t, top)
	src := open(t, top, Options{})
	checkSource(t, src, larger)
	if p, f := src.Backing(); src.Kind() != Dependent || p != mid || f != VHD {
		t.Errorf("got a %v on %q, %q", src.Kind(), p, f)
	}
	checkOwn(t, src, larger, content)
	var own int64
	list, _, err := src.Own(t.Context(), 0, src.Size())
	for _, e := range list {
		own += e.Length
	}
	if want := int64(512 * len(changes)); own != want || err != nil {
		t.Errorf("own: got %d bytes, %v, want %d", own, err, want)
	}

	chain, err := Chain(t.Context(), top, Options{})
	if want := []Layer{{base, VHD, testSize}, {mid, VHD, testSize}, {top, VHD, testSize + 1<<20}}; err != nil || len(chain) != 3 ||
		chain[0] != want[0] || chain[1] != want[1] || chain[2] != want[2] {
		t.Errorf("Chain: got %v, %v, want %v", chain, err, want)
	}
}

func TestVHDParentErrors(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.vhd")
	qemuImg(t, "create", "-f", "vpc", base, "4M")

	other := filepath.Join(dir, "other.vhd")
	vhdChild{parent: base, plain: "base.vhd", size: 4 << 20, parentID: make([]byte, 16)}.write(t, other)
	if _, err := Open(t.Context(), other, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another parent: got %v, want ErrCorrupt", err)
	}
	orphan := filepath.Join(dir, "orphan.vhd")
	sectors := map[int64][]byte{3: bytes.Repeat([]byte{1}, 512)}
	vhdChild{parent: base, plain: "gone.vhd", size: 4 << 20, sectors: sectors}.write(t, orphan)
	if _, err := Open(t.Context(), orphan, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no parent: got %v, want fs.ErrNotExist", err)
	}
	src := open(t, orphan, Options{NoBacking: true})
	want := make([]byte, 4<<20)
	copy(want[3*512:], sectors[3])
	checkSource(t, src, want)
	if p, _ := src.Backing(); src.Kind() != Dependent || p != filepath.Join(dir, "gone.vhd") {
		t.Errorf("alone: got a %v on %q", src.Kind(), p)
	}
	self := filepath.Join(dir, "self.vhd")
	vhdChild{parent: base, plain: "base.vhd", size: 4 << 20}.write(t, self)
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	id := bytes.Clone(b[68:84])
	vhdChild{parent: base, plain: "self.vhd", size: 4 << 20, parentID: id}.write(t, self)
	if _, err := Open(t.Context(), self, Options{}); !errors.Is(err, ErrChain) {
		t.Errorf("its own parent: got %v, want ErrChain", err)
	}
}

func TestBitRun(t *testing.T) {
	b := []byte{0b00111111, 0xff, 0b11000000, 0}
	for _, c := range [][3]int{{0, 32, 2}, {1, 31, 1}, {2, 30, 16}, {2, 5, 5}, {7, 25, 11}, {0, 1, 1}} {
		if got := bitRun(b, c[0], c[1]); got != c[2] {
			t.Errorf("bitRun(%d, %d): got %d, want %d", c[0], c[1], got, c[2])
		}
	}
}
