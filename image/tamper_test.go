package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/blockstore/storetest"
	"github.com/sealdisk/sealdisk/image/audit"
)

// victim is a store with an image whose every kind of record stands in at least two
// versions, and what its disk should read.
type victim struct {
	*rig
	id       blockstore.ImageID
	model    []byte
	snapshot []byte
	old      map[string][]byte // records as they were earlier, by key
	records  []storetest.Record
}

func newVictim(t *testing.T) *victim {
	ctx := context.Background()
	v := &victim{rig: newRig(t), model: make([]byte, 17<<20), old: make(map[string][]byte)}
	v.id = v.create(int64(len(v.model)))
	rng := rand.New(rand.NewPCG(9, 9))
	d := v.open(v.id, OpenOptions{})
	scribble(t, d, v.model, rng, 30)
	if err := errors.Join(d.Snapshot(ctx, "first"), d.Commit(ctx)); err != nil {
		t.Fatal(err)
	}
	v.snapshot = bytes.Clone(v.model)
	v.close(d)
	v.remember()
	d = v.open(v.id, OpenOptions{})
	scribble(t, d, v.model, rng, 30)
	d.Record()
	same(t, d, v.model)
	if err := errors.Join(d.Snapshot(ctx, "second"), d.SetRecipients(ctx, to(v.recipient))); err != nil {
		t.Fatal(err)
	}
	scribble(t, d, v.model, rng, 10)
	v.close(d)
	v.remember()
	return v
}

func (v *victim) storeDir() string { return filepath.Join(v.dir, "store") }

func (v *victim) remember() {
	v.t.Helper()
	v.stop()
	records, err := storetest.Read(v.storeDir())
	if err != nil {
		v.t.Fatal(err)
	}
	for _, r := range v.records {
		v.old[string(r.Key)] = r.Value
	}
	v.records = records
	v.start()
}

// outcome opens and reads everything. Right data or errors: nothing else.
func (v *victim) outcome(why string) error {
	v.t.Helper()
	ctx := context.Background()
	var errs []error
	for _, o := range []OpenOptions{{ReadOnly: true}, {Snapshot: "first"}} {
		d, err := v.s.Open(ctx, v.id, o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		want := v.model
		if o.Snapshot != "" {
			want = v.snapshot
		}
		if d.Size() != int64(len(want)) {
			v.t.Fatalf("%s: size %d", why, d.Size())
		}
		buf := make([]byte, 64<<10)
		for off := 0; off < len(want); off += len(buf) {
			n := min(len(buf), len(want)-off)
			switch k, err := d.ReadAt(ctx, buf[:n], int64(off)); {
			case err != nil:
				errs = append(errs, err)
			case k != n || !bytes.Equal(buf[:n], want[off:off+n]):
				v.t.Fatalf("%s: wrong data at %d", why, off)
			}
		}
		if err := d.Close(ctx); err != nil {
			v.t.Fatalf("%s: close: %v", why, err)
		}
	}
	return errors.Join(errs...)
}

// faults counts what verify finds.
func (v *victim) faults() (n int) {
	v.t.Helper()
	err := v.s.Verify(context.Background(), v.id, func(audit.Fault) { n++ }, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	return n
}

// damages are the ways in which one record is changed; nil if one does not apply.
func (v *victim) damages(i int, rng *rand.Rand) map[string][]byte {
	value := v.records[i].Value
	flip := bytes.Clone(value)
	if len(flip) > 0 {
		flip[rng.IntN(len(flip))] ^= 1 << rng.IntN(8)
	}
	m := map[string][]byte{
		"flipped":   flip,
		"cut":       bytes.Clone(value[:rng.IntN(len(value)+1)]),
		"longer":    append(bytes.Clone(value), 0),
		"empty":     {},
		"gone":      nil,
		"of others": nil,
	}
	for range 20 { // another record of the same kind in its place
		o := v.records[rng.IntN(len(v.records))]
		if o.Key[0] == v.records[i].Key[0] && !bytes.Equal(o.Value, value) {
			m["of others"] = o.Value
			break
		}
	}
	if old, ok := v.old[string(v.records[i].Key)]; ok && !bytes.Equal(old, value) {
		m["older"] = old
	}
	return m
}

func TestTamper(t *testing.T) {
	v := newVictim(t)
	if err := v.outcome("untouched"); err != nil {
		t.Fatal(err)
	}
	if n := v.faults(); n != 0 {
		t.Fatalf("%d faults in an untouched store", n)
	}
	rng := rand.New(rand.NewPCG(11, 12))
	seen := make(map[byte]int)
	for i, r := range v.records {
		kind := r.Key[0]
		if seen[kind] > 15 && rng.IntN(8) > 0 { // objects are many
			continue
		}
		seen[kind]++
		for name, value := range v.damages(i, rng) {
			if name == "of others" && value == nil {
				continue
			}
			v.try(fmt.Sprintf("%c record %x %s", kind, r.Key[1:min(5, len(r.Key))], name), r, value)
		}
	}
	for _, kind := range []byte("ohkl") {
		if seen[kind] == 0 {
			t.Errorf("no record of kind %c", kind)
		}
	}
	if err := v.outcome("restored"); err != nil {
		t.Fatal(err)
	}
}

// try damages one record and looks at what readers and verify make of it.
func (v *victim) try(why string, r storetest.Record, value []byte) {
	v.t.Helper()
	v.stop()
	if err := storetest.Write(v.storeDir(), storetest.Record{Key: r.Key, Value: value}); err != nil {
		v.t.Fatal(err)
	}
	defer func() {
		if err := storetest.Write(v.storeDir(), r); err != nil {
			v.t.Fatal(err)
		}
		v.start()
	}()
	if r.Key[0] == 'f' {
		st, err := blockstore.Open(context.Background(), v.storeDir(), v.storeOptions())
		if err == nil {
			_ = st.Close()
			if value != nil && len(value) == len(r.Value) {
				return // another store id: the daemon's catalogue does not open under it
			}
			v.t.Fatalf("%s: the store opens", why)
		}
		return
	}
	v.start()
	damaged := v.outcome(why)
	found := v.faults()
	v.stop()
	if damaged != nil && found == 0 {
		v.t.Fatalf("%s: verify finds nothing, reading says %v", why, damaged)
	}
}

// TestTamperJournal damages the journal that a crash has left.
func TestTamperJournal(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	model := make([]byte, 4<<20)
	id := r.create(int64(len(model)))
	d := r.open(id, OpenOptions{})
	rng := rand.New(rand.NewPCG(13, 14))
	var states [][]byte
	for range 6 {
		scribble(t, d, model, rng, 3)
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		states = append(states, bytes.Clone(model))
	}
	end := d.journal.end
	d.abandon()
	paths, err := filepath.Glob(filepath.Join(r.dir, "store", "journal", id.String(), "*"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("journals %v, %v", paths, err)
	}
	whole, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	for round := range 60 {
		b := bytes.Clone(whole)
		switch at := rng.Int64N(end); round % 3 {
		case 0:
			b[at] ^= 1 << rng.IntN(8)
		case 1:
			b = b[:at]
		case 2:
			copy(b[at&^4095:], make([]byte, 4096))
		}
		if err := os.WriteFile(paths[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := r.s.Open(ctx, id, OpenOptions{ReadOnly: true})
		if err != nil {
			continue
		}
		got := make([]byte, len(model))
		if _, err := d.ReadAt(ctx, got, 0); err != nil {
			t.Fatal(err)
		}
		ok := bytes.Equal(got, make([]byte, len(got)))
		for _, s := range states {
			ok = ok || bytes.Equal(got, s)
		}
		if !ok {
			t.Fatalf("round %d: a state that never was", round)
		}
		r.close(d)
	}
	if err := os.Remove(paths[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := r.s.Open(ctx, id, OpenOptions{}); !errors.Is(err, ErrRolledBack) {
		t.Errorf("a journal gone: %v, want ErrRolledBack", err)
	}
}
