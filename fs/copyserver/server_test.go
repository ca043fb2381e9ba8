package copyserver

import (
	"bytes"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

func TestReadsWhatWasWritten(t *testing.T) {
	d := newDisk(make([]byte, 16))
	for _, tt := range []struct {
		off    uint64
		data   string
		status fuse.Status
	}{
		{0, "ab", fuse.OK}, {14, "yz", fuse.OK}, {16, "", fuse.OK},
		{15, "no", fuse.Status(28)}, {17, "", fuse.Status(28)}, {1 << 63, "x", fuse.Status(28)},
	} {
		n, status := d.Write(nil, &fuse.WriteIn{Offset: tt.off}, []byte(tt.data))
		if status != tt.status || status == fuse.OK && int(n) != len(tt.data) {
			t.Errorf("write of %q at %d: got %d, %v, want %v", tt.data, tt.off, n, status, tt.status)
		}
	}
	want := []byte("ab\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00yz")
	for _, off := range []uint64{0, 1, 15, 16, 17, 1 << 63} {
		result, status := d.Read(nil, &fuse.ReadIn{Offset: off, Size: 4096}, make([]byte, 4096))
		if status != fuse.OK {
			t.Fatalf("read at %d: got %v, want OK", off, status)
		}
		got, _ := result.Bytes(nil)
		if !bytes.Equal(got, want[min(off, 16):]) {
			t.Errorf("read at %d: got %q, want %q", off, got, want[min(off, 16):])
		}
	}
}

func TestShowsOneFile(t *testing.T) {
	d := newDisk(make([]byte, 4096))
	var out fuse.EntryOut
	if got := d.Lookup(nil, nil, "other", &out); got != fuse.ENOENT {
		t.Errorf("another name: got %v, want ENOENT", got)
	}
	if got := d.Lookup(nil, nil, Name, &out); got != fuse.OK || out.Size != 4096 || out.NodeId != diskID {
		t.Errorf("the disk: got %v, %d bytes, node %d, want OK, 4096, %d", got, out.Size, out.NodeId, diskID)
	}
}
