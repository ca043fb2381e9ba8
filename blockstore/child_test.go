package blockstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The test binary runs itself for what must happen in another process.
const (
	envRole = "BLOCKSTORE_TEST_ROLE"
	envDir  = "BLOCKSTORE_TEST_DIR"
	envSeed = "BLOCKSTORE_TEST_SEED"
)

func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv(envRole); role {
	case "":
		os.Exit(m.Run())
	case "hold":
		err = childHold()
	case "open":
		err = childOpen()
	case "write":
		err = childWrite()
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(3)
	}
	os.Exit(0)
}

// child starts a role on a store; its stdin closes with the returned closer.
func child(t testing.TB, role, dir string, seed uint64) (*exec.Cmd, io.WriteCloser, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envRole+"="+role, envDir+"="+dir, envSeed+"="+strconv.FormatUint(seed, 10))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, in, bufio.NewScanner(out)
}

// childHold holds the store until its stdin ends.
func childHold() error {
	s, err := Open(context.Background(), os.Getenv(envDir), Options{Reserve: testReserve})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return s.Close()
}

func TestInUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	if err := Create(dir, Options{Reserve: testReserve}); err != nil {
		t.Fatal(err)
	}
	cmd, in, out := child(t, "hold", dir, 0)
	if !out.Scan() || out.Text() != "ready" {
		t.Fatalf("child said %q", out.Text())
	}
	for name, do := range map[string]func() error{
		"open":   func() error { _, err := Open(t.Context(), dir, Options{}); return err },
		"create": func() error { return Create(dir, Options{}) },
	} {
		var inUse *InUseError
		err := do()
		if !errors.As(err, &inUse) {
			t.Fatalf("%s: got %v, want InUseError", name, err)
		}
		if inUse.PID != cmd.Process.Pid || !strings.Contains(inUse.Command, filepath.Base(os.Args[0])) {
			t.Errorf("%s: holder %d %q, want %d %q", name, inUse.PID, inUse.Command, cmd.Process.Pid, os.Args[0])
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir)
}

// The crash test's content follows from numbers, so that the parent can check it.

func crashObject(n uint64) Object {
	r := rand.New(rand.NewPCG(n, 1))
	b := make([]byte, []int{900, 5000, 70_000, 300_000}[n%4])
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return Object{ID: IDOf(b), Bytes: b}
}

var crashImage = ImageID(id32(1))

// childWrite puts, commits, deletes and reclaims until it is killed. It says what it is
// about to do and what was acknowledged: "put N", "+put N", "del N", "+del N", "+head N".
func childWrite() error {
	ctx := context.Background()
	s, err := Open(ctx, os.Getenv(envDir), Options{Reserve: testReserve})
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(os.Getenv(envSeed), 10, 64)
	if err != nil {
		return err
	}
	go func() {
		for s.Err() == nil {
			s.Reclaim(ctx)
		}
	}()
	for n := seed; ; n += 16 {
		objs := make([]Object, 16)
		ids := make([]ObjectID, 0, 12)
		for i := range objs {
			objs[i] = crashObject(n + uint64(i))
			if i >= 4 { // four of sixteen stay
				ids = append(ids, objs[i].ID)
			}
		}
		fmt.Println("put", n)
		if err := s.PutObjects(ctx, objs); err != nil {
			return err
		}
		fmt.Println("+put", n)
		fmt.Println("head", n)
		if _, err := s.PutCommit(ctx, crashImage, commitRaw(crashImage, Sequence(n), nil)); err != nil {
			return err
		}
		fmt.Println("+head", n)
		fmt.Println("del", n)
		if err := s.DeleteObjects(ctx, ids); err != nil {
			return err
		}
		fmt.Println("+del", n)
	}
}

// crashed is what the child said before it died.
type crashed struct {
	put, del        map[uint64]bool // acknowledged
	deleting        map[uint64]bool // begun
	head, headBegun uint64
}

func (c *crashed) note(t *testing.T, line string) {
	what, number, _ := strings.Cut(line, " ")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		t.Fatalf("child said %q", line)
	}
	switch what {
	case "+put":
		c.put[n] = true
	case "del":
		c.deleting[n] = true
	case "+del":
		c.del[n] = true
	case "head":
		c.headBegun = n
	case "+head":
		c.head = n
	}
}

func (c *crashed) check(t *testing.T, s *Store) {
	t.Helper()
	for n := range c.put {
		for i := range uint64(16) {
			o := crashObject(n + i)
			switch {
			case i < 4 || !c.deleting[n]:
				wantObject(t, s, o)
			case c.del[n]:
				wantAbsent(t, s, o.ID)
			}
		}
	}
	_, raw, err := s.Head(crashImage)
	if err != nil {
		if c.head != 0 || !errors.Is(err, ErrNotFound) {
			t.Errorf("head: %v, want sequence %d", err, c.head)
		}
		return
	}
	com, err := ParseCommit(raw)
	if err != nil {
		t.Fatal(err)
	}
	if n := uint64(com.Sequence); n != c.head && n != c.headBegun {
		t.Errorf("head is of sequence %d, want %d or %d", n, c.head, c.headBegun)
	}
}

// thin forgets most of what was checked: the check would grow with each round.
func (c *crashed) thin() {
	for n := range c.put {
		if n%5 != 0 {
			delete(c.put, n)
		}
	}
}

// A process that is killed at any moment loses nothing that was acknowledged.
func TestKilled(t *testing.T) {
	rounds := 16
	if testing.Short() {
		rounds = 5
	}
	dir := filepath.Join(t.TempDir(), "store")
	if err := Create(dir, Options{Reserve: testReserve}); err != nil {
		t.Fatal(err)
	}
	c := crashed{put: map[uint64]bool{}, del: map[uint64]bool{}, deleting: map[uint64]bool{}}
	for round := range rounds {
		cmd, in, out := child(t, "write", dir, uint64(round+1)*1_000_000)
		lines := rand.IntN(60) + 1 // a random moment, measured in progress
		for i := 0; out.Scan(); i++ {
			c.note(t, out.Text())
			if i == lines {
				cmd.Process.Kill()
			}
		}
		in.Close()
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("round %d: the child ended by itself: %v", round, cmd.ProcessState)
		}
		s, err := Open(t.Context(), dir, Options{Reserve: testReserve})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		c.check(t, s)
		c.thin()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("after round %d", round)
		}
	}
}

// childOpen opens the store, reads every object and says how it went.
func childOpen() error {
	ctx := context.Background()
	s, err := Open(ctx, os.Getenv(envDir), Options{Reserve: testReserve})
	if err != nil {
		return err
	}
	defer s.Close()
	var bad, good int
	var ids []ObjectID
	err = s.Objects(ctx, func(id ObjectID, _ int64) error { ids = append(ids, id); return nil })
	if err != nil {
		return err
	}
	for _, id := range ids {
		err := s.Get(ctx, id, func(b []byte) error {
			if IDOf(b) != id {
				return ErrCorrupt // what the layer above finds out
			}
			return nil
		})
		if err == nil {
			good++
		} else if errors.Is(err, ErrCorrupt) {
			bad++
		} else {
			return fmt.Errorf("object %v: %w", id, err)
		}
	}
	fmt.Println("good", good, "bad", bad)
	return nil
}

// Whatever happens to Badger's files, opening and reading give an error or right data,
// and never end the process.
func TestDamagedFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	if err := Create(dir, Options{Reserve: testReserve}); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	for n := range uint64(400) {
		put(t, s, crashObject(n%4+4*n))
	}
	var ids []ObjectID
	for n := range uint64(200) {
		ids = append(ids, crashObject(n%4+4*n).ID)
	}
	if err := s.DeleteObjects(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	if err := s.flushMemtable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Join(dir, "badger"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		for name, damage := range damages() {
			t.Run(f.Name()+"/"+name, func(t *testing.T) { damageFile(t, dir, f.Name(), damage) })
		}
	}
}

func damages() map[string]func(b []byte) []byte {
	garble := func(from, to int) func([]byte) []byte {
		return func(b []byte) []byte {
			r := rand.New(rand.NewPCG(1, 2))
			for i := len(b) * from / 100; i < len(b)*to/100; i++ {
				b[i] = byte(r.Uint32())
			}
			return b
		}
	}
	return map[string]func(b []byte) []byte{
		"empty":  func([]byte) []byte { return nil },
		"short":  func(b []byte) []byte { return b[:min(len(b), 7)] },
		"half":   func(b []byte) []byte { return b[:len(b)/2] },
		"head":   garble(0, 2),
		"middle": garble(40, 60),
		"tail":   garble(98, 100),
		"bit":    func(b []byte) []byte { b[len(b)/3] ^= 0x10; return b },
		"zeros":  func(b []byte) []byte { return make([]byte, len(b)) },
	}
}

func damageFile(t *testing.T, from, name string, damage func([]byte) []byte) {
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "badger", name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		return
	}
	if err := os.WriteFile(path, damage(b), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, in, out := child(t, "open", dir, 0)
	var last string
	for out.Scan() {
		last = out.Text()
	}
	in.Close()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 && (code != 3 || !strings.HasPrefix(last, "error ")) {
		t.Errorf("the process ended with %v, saying %q", cmd.ProcessState, last)
	}
	t.Log(last)
}
