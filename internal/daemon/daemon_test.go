package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/internal/home"
)

// newStore makes a store and a host directory and gives the options to open them.
func newStore(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	o := Options{Store: filepath.Join(dir, "store"), Home: filepath.Join(dir, "home"), Command: "test"}
	if _, err := Init(context.Background(), InitOptions{Options: o}); err != nil {
		t.Fatal(err)
	}
	return o
}

// connect opens a store; it is closed at the end of the test, unless that was done.
func connect(t *testing.T, o Options) *Conn {
	t.Helper()
	c, err := Connect(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.local != nil {
			finish(t, c)
		}
	})
	return c
}

func finish(t *testing.T, c *Conn) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	c.local = nil
}

// must runs an operation that may not fail.
func must[R any](t *testing.T, c *Conn, op string, request any) R {
	t.Helper()
	var r R
	if err := c.Call(context.Background(), op, request, nil, &r, nil); err != nil {
		t.Fatalf("%s: %v", op, err)
	}
	return r
}

// refused runs an operation that must fail with a code.
func refused(t *testing.T, c *Conn, op string, request any, want Code) {
	t.Helper()
	err := c.Call(context.Background(), op, request, nil, nil, nil)
	if failure := AsError(err); failure == nil || failure.Code != want {
		t.Errorf("%s: got %v, want code %s", op, err, want)
	}
}

// importStream makes an image of data.
func importStream(t *testing.T, c *Conn, name string, data []byte) {
	t.Helper()
	if err := c.Call(context.Background(), OpImport, ImportRequest{Name: name}, bytes.NewReader(data), nil, nil); err != nil {
		t.Fatal(err)
	}
}

// TestModes: nobody else can read what the host directory or the socket gives.
func TestModes(t *testing.T) {
	o := newStore(t)
	connect(t, o)
	for _, path := range []string{
		filepath.Join(o.Home, "identity"), filepath.Join(o.Home, "host.pem"), filepath.Join(o.Home, "recipients"),
		filepath.Join(o.Store, socketName), o.Home, filepath.Join(o.Home, "anchor"),
	} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, fi.Mode())
		}
	}
}

// TestHostKept: what is in a host directory stays when another store is made.
func TestHostKept(t *testing.T) {
	o := newStore(t)
	before, err := os.ReadFile(filepath.Join(o.Home, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	again := InitOptions{Options: o, Host: home.Options{Admins: []string{otherRecipient(t)}}}
	again.Store += "2"
	done, err := Init(context.Background(), again)
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(filepath.Join(o.Home, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) || done.IdentityCreated {
		t.Error("the identity was made anew")
	}
	if !done.AdminElsewhere {
		t.Error("the admin is not known")
	}
	h, err := home.Open(o.Home, crypto.Prompt{})
	if err != nil || len(h.Admins) != 2 || len(h.Recipients) != 1 {
		t.Errorf("%d admins, %d recipients, %v, want 2 and 1", len(h.Admins), len(h.Recipients), err)
	}
}

func otherRecipient(t *testing.T) string {
	t.Helper()
	_, r, err := crypto.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCheckName(t *testing.T) {
	for _, ok := range []string{"a", "0", "debian-12.img_x", strings.Repeat("a", 128)} {
		if err := checkName("image", ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-a", ".a", "a/b", "a@b", "a b", "ä", "a\n", "a\x00", strings.Repeat("a", 129)} {
		if err := checkName("image", bad); AsError(err) == nil || AsError(err).Code != CodeUsage {
			t.Errorf("%q: got %v, want a usage error", bad, err)
		}
	}
	for _, s := range []string{"a@", "@b", "a@b@c", "a@b/c"} {
		if _, _, err := splitName(s); err == nil {
			t.Errorf("%q was taken apart", s)
		}
	}
}

// TestCatalogue: names survive, and an older catalogue in place of the newest is
// noticed, as is one that is missing.
func TestCatalogue(t *testing.T) {
	ctx := context.Background()
	o := newStore(t)
	c := connect(t, o)
	importStream(t, c, "one", make([]byte, 5000))
	old, err := c.local.store.Catalogue()
	if err != nil {
		t.Fatal(err)
	}
	importStream(t, c, "two", make([]byte, 5000))
	finish(t, c)

	c = connect(t, o)
	if got := must[[]string](t, c, OpNames, Nothing{}); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("names %q, want one and two", got)
	}
	refused(t, c, OpRename, NewNameRequest{"one", "two"}, CodeExists)
	must[Nothing](t, c, OpRename, NewNameRequest{"one", "three"})
	if got := must[Info](t, c, OpInfo, NameRequest{Name: "three"}); got.Size != 5000 {
		t.Errorf("size %d, want 5000", got.Size)
	}
	if err := c.local.store.PutCatalogue(ctx, old); err != nil {
		t.Fatal(err)
	}
	finish(t, c)

	c = connect(t, o)
	refused(t, c, OpNames, Nothing{}, CodeRolledBack)
	refused(t, c, OpCollect, Nothing{}, CodeRolledBack) // it would take what it has no name for
	finish(t, c)

	// What the images say of themselves brings it back.
	done, err := Init(ctx, InitOptions{Options: o, Recover: true})
	if err != nil || len(done.Recovered) != 2 {
		t.Fatalf("recovered %q, %v", done.Recovered, err)
	}
	c = connect(t, o)
	if got := must[[]string](t, c, OpNames, Nothing{}); !slices.Equal(got, []string{"three", "two"}) {
		t.Errorf("names %q, want three and two", got)
	}
}

// TestReserve: a name that is being made is taken.
func TestReserve(t *testing.T) {
	c := connect(t, newStore(t))
	release, err := c.local.names.reserve("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.local.names.reserve("a"); AsError(err) == nil || AsError(err).Code != CodeExists {
		t.Errorf("got %v, want %s", err, CodeExists)
	}
	release()
	if release, err = c.local.names.reserve("a"); err != nil {
		t.Error(err)
	} else {
		release()
	}
}

// TestOrphans: the collector takes images that have no name, and only those.
func TestOrphans(t *testing.T) {
	ctx := context.Background()
	c := connect(t, newStore(t))
	importStream(t, c, "kept", bytes.Repeat([]byte{1}, 100_000))
	importStream(t, c, "lost", bytes.Repeat([]byte{2}, 100_000))
	e, err := c.local.names.find("lost")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.local.names.remove(ctx, e.Image); err != nil { // and then the machine stops
		t.Fatal(err)
	}
	if got := must[Collected](t, c, OpCollect, Nothing{}); got.Orphans != 1 || got.Objects == 0 {
		t.Errorf("%d orphans, %d objects, want 1 and some", got.Orphans, got.Objects)
	}
	if got := must[Verified](t, c, OpVerify, VerifyRequest{}); got.Faults != 0 || !slices.Equal(got.Images, []string{"kept"}) {
		t.Errorf("%d faults in %q, want none in kept", got.Faults, got.Images)
	}
	if err := c.local.names.add(ctx, record.Entry{Name: "x", Image: e.Image}); err != nil {
		t.Fatal(err)
	}
	refused(t, c, OpInfo, NameRequest{Name: "x"}, CodeCorrupt)
}

// TestOneDaemon: a second command speaks to the first one's daemon, which ends
// only when the second is done.
func TestOneDaemon(t *testing.T) {
	o := newStore(t)
	first := connect(t, o)
	second := connect(t, o)
	if second.Local() {
		t.Fatal("two processes own the store")
	}
	importStream(t, second, "a", make([]byte, 4096))
	must[Info](t, first, OpInfo, NameRequest{Name: "a"})
	if st := must[Status](t, second, OpStatus, Nothing{}); st.PID != os.Getpid() || st.Persistent || st.Command != "test" {
		t.Errorf("status %+v", st)
	}
	refused(t, second, OpMount, MountRequest{Dir: t.TempDir()}, CodeInUse)
	finish(t, first)
	// The next call finds nobody and opens the store itself.
	must[Info](t, second, OpInfo, NameRequest{Name: "a"})
	if !second.Local() {
		t.Error("nobody owns the store")
	}
}

// TestRequests: what is no request of the API is refused, and says so.
func TestRequests(t *testing.T) {
	c := connect(t, newStore(t))
	for _, tt := range []struct{ op, body, want string }{
		{OpInfo, "{}", `"usage"`},
		{OpInfo, `{"nme":"a"}`, `"usage"`},
		{OpInfo, `not json`, `"usage"`},
		{OpInfo, ``, `"usage"`},
		{OpInfo, `{"name":"` + strings.Repeat("a", maxRequest) + `"}`, `"usage"`},
		{OpStatus, `{}`, `"result"`},
	} {
		resp, err := c.http.Post("http://daemon/v1/"+tt.op, "application/json", strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(b), tt.want) {
			t.Errorf("%s %.20q: got %.200q, %v, want %s", tt.op, tt.body, b, err, tt.want)
		}
	}
	resp, err := c.http.Get("http://daemon/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("GET: status %d, want %d", resp.StatusCode, http.StatusNotFound)
	}
}

// TestCancelImport: an import whose client has gone ends, and its name is free.
func TestCancelImport(t *testing.T) {
	c := connect(t, newStore(t))
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- c.Call(ctx, OpImport, ImportRequest{Name: "a"}, r, nil, nil) }()
	if _, err := w.Write(bytes.Repeat([]byte{1}, 20<<20)); err != nil {
		t.Fatal(err)
	}
	refused(t, c, OpClone, NewNameRequest{"nothing", "a"}, CodeNotFound)
	cancel()
	if err := AsError(<-ended); err == nil || err.Code != CodeInterrupted {
		t.Errorf("got %v, want %s", err, CodeInterrupted)
	}
	w.CloseWithError(errors.New("the writer has gone too"))
	if got := must[Collected](t, c, OpCollect, Nothing{}); got.Orphans != 0 {
		t.Errorf("%d orphans, want none", got.Orphans)
	}
	if s := must[Stats](t, c, OpStats, Nothing{}); s.Images != 0 || s.Objects != 0 {
		t.Errorf("%d images, %d objects, want none", s.Images, s.Objects)
	}
	importStream(t, c, "a", make([]byte, 4096))
}

// TestDisks: one Disk for all users; who wants the image alone waits for a
// glance and is refused while it is held.
func TestDisks(t *testing.T) {
	ctx := context.Background()
	c := connect(t, newStore(t))
	importStream(t, c, "a", make([]byte, 4096))
	e, err := c.local.names.find("a")
	if err != nil {
		t.Fatal(err)
	}
	d, key := c.local.disks, diskKey{id: e.Image}
	one, release1, err := d.acquire(ctx, key, holds)
	if err != nil {
		t.Fatal(err)
	}
	two, release2, err := d.acquire(ctx, key, glance)
	if err != nil || one != two {
		t.Fatalf("two disks, or %v", err)
	}
	if _, err := d.claim(key, "a"); !errors.Is(err, image.ErrInUse) {
		t.Errorf("got %v, want %v", err, image.ErrInUse)
	}
	if err := release1(ctx); err != nil {
		t.Fatal(err)
	}
	claimed := make(chan func())
	go func() {
		release, err := d.claim(key, "a")
		if err != nil {
			t.Error(err)
		}
		claimed <- release
	}()
	for taken := false; !taken; { // until the claim waits
		d.mu.Lock()
		taken = d.claimed[key]
		d.mu.Unlock()
	}
	if _, _, err := d.acquire(ctx, key, glance); AsError(err) == nil || AsError(err).Code != CodeInUse {
		t.Errorf("got %v, want %s", err, CodeInUse)
	}
	if err := release2(ctx); err != nil {
		t.Fatal(err)
	}
	(<-claimed)()
	if d.openLocked(key) {
		t.Error("the disk is still open")
	}
}
