package main

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sealdisk": main})
}

// TestSessions runs the sessions of testdata as a user types them. A session has
// a store and a host directory of its own.
func TestSessions(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("SEALDISK_STORE", filepath.Join(e.WorkDir, "store"))
			e.Setenv("SEALDISK_HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("TZ", "UTC")
			e.Defer(func() { cutMounts(t, e.WorkDir) })
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":   exitsCmd,
			"mkimage": mkimageCmd,
			"poke":    pokeCmd,
			"flip":    flipCmd,
			"same":    sameCmd,
			"feed":    feedCmd,
			"port":    portCmd,
			"reach":   reachCmd,
			"print":   printCmd,
			"get":     getCmd,
		},
	})
}

// get URL FILE: asks for it, and writes the answer to a file.
func getCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get URL FILE")
	}
	answer, err := http.Get(args[0])
	ts.Check(err)
	body, err := io.ReadAll(answer.Body)
	ts.Check(errors.Join(err, answer.Body.Close()))
	if answer.StatusCode != http.StatusOK {
		ts.Fatalf("%s: %s", args[0], answer.Status)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), body, 0o600))
}

// port NAME: puts a port of this machine that is free into a variable.
func portCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: port NAME")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(errors.Join(err, l.Close()))
	ts.Setenv(args[0], port)
}

// reach ADDRESS: somebody listens there, at the latest after 30 seconds.
func reachCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: reach ADDRESS")
	}
	for end := time.Now().Add(30 * time.Second); ; {
		c, err := net.Dial("tcp", args[0])
		if err == nil {
			ts.Check(c.Close())
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("nobody listens at %s: %v", args[0], err)
		}
		runtime.Gosched()
	}
}

// print NAME HOME: puts the fingerprint of the host with that host directory into a variable.
func printCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: print NAME HOME")
	}
	b, err := os.ReadFile(filepath.Join(ts.MkAbs(args[1]), "host.pem"))
	ts.Check(err)
	key, err := crypto.ParseHostKey(b)
	ts.Check(err)
	ts.Setenv(args[0], peer.FingerprintOf(key.Public()).String())
}

// cutMounts takes away what a session that failed has left mounted: its daemon
// ends with its last mount.
func cutMounts(t *testing.T, dir string) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
}

// exits STATUS COMMAND…: the command ends with that exit status.
func exitsCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// mkimage FILE SIZE [OFFSET:LENGTH:SEED…]: a sparse file with random bytes there.
func mkimageCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mkimage FILE SIZE [OFFSET:LENGTH:SEED…]")
	}
	size, err := parseSize(args[1])
	ts.Check(err)
	path := ts.MkAbs(args[0])
	ts.Check(os.WriteFile(path, nil, 0o600))
	ts.Check(os.Truncate(path, size))
	poke(ts, path, args[2:])
}

// poke FILE OFFSET:LENGTH:SEED…: writes random bytes there, and syncs.
func pokeCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: poke FILE OFFSET:LENGTH:SEED…")
	}
	poke(ts, ts.MkAbs(args[0]), args[1:])
}

func poke(ts *testscript.TestScript, path string, places []string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	for _, p := range places {
		part := strings.Split(p, ":")
		if len(part) != 3 {
			ts.Fatalf("%q is not OFFSET:LENGTH:SEED", p)
		}
		off, err := parseSize(part[0])
		ts.Check(err)
		n, err := parseSize(part[1])
		ts.Check(err)
		var seed [32]byte
		copy(seed[:], part[2])
		b := make([]byte, n)
		_, err = rand.NewChaCha8(seed).Read(b)
		ts.Check(err)
		_, err = f.WriteAt(b, off)
		ts.Check(err)
	}
	ts.Check(f.Sync())
}

// flip GLOB COUNT: flips a bit in COUNT bytes spread over the largest file that
// matches, behind its first 4 KiB.
func flipCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip GLOB COUNT")
	}
	count, err := strconv.Atoi(args[1])
	ts.Check(err)
	paths, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	var largest string
	var data []byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		ts.Check(err)
		if len(b) > len(data) {
			largest, data = p, b
		}
	}
	end := len(data)
	for end > 0 && data[end-1] == 0 {
		end--
	}
	for i := range count {
		data[4096+(end-4096)*i/count] ^= 0x40
	}
	ts.Check(os.WriteFile(largest, data, 0o600))
}

// same FILE FILE: equal in length and content.
func sameCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] same FILE FILE")
	}
	err := ts.Exec("cmp", args[0], args[1])
	if (err != nil) != neg {
		ts.Fatalf("cmp: %v", err)
	}
}

// feed FILE COMMAND…: runs a command with the file on its standard input, as a
// pipe.
func feedCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: feed FILE COMMAND…")
	}
	const script = `cat "$0" | "$@"`
	ts.Check(ts.Exec("sh", append([]string{"-c", script}, args...)...))
}
