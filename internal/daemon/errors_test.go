package daemon

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/fs"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/format"
)

// TestAsError: an error keeps its kind however it was wrapped, and the kind of
// what is stored and wrong is never "not found".
func TestAsError(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want Code
	}{
		{errors.New("anything"), CodeInternal},
		{context.Canceled, CodeInterrupted},
		{&blockstore.InUseError{PID: 1, Command: "x"}, CodeInUse},
		{&blockstore.CorruptError{What: "object"}, CodeCorrupt},
		{blockstore.ErrNotFound, CodeCorrupt},
		{blockstore.ErrFormat, CodeFormat},
		{blockstore.ErrNoSpace, CodeNoSpace},
		{unix.ENOSPC, CodeNoSpace},
		{crypto.ErrAuth, CodeCorrupt},
		{crypto.ErrNoIdentity, CodeNoKey},
		{crypto.ErrIdentity, CodeNoKey},
		{image.ErrRolledBack, CodeRolledBack},
		{image.ErrNotHolder, CodeLease},
		{image.ErrInUse, CodeInUse},
		{image.ErrNoSnapshot, CodeNotFound},
		{format.ErrShrunk, CodeSource},
		{format.ErrInUse, CodeInUse},
		{&fs.MountError{Dir: "d", Err: fs.ErrNotEmpty}, CodeInUse},
		{&fs.BusyError{Dir: "d"}, CodeInUse},
		{iofs.ErrNotExist, CodeNotFound},
		{sourceError(&os.PathError{Op: "open", Path: "p", Err: unix.ENOENT}), CodeSource},
		{fail(CodeUsage, "hint", "text"), CodeUsage},
	} {
		got := AsError(errors.Join(fmt.Errorf("outer: %w", tt.err), nil))
		if got.Code != tt.want {
			t.Errorf("%v: code %s, want %s", tt.err, got.Code, tt.want)
		}
		if !errors.Is(got, tt.err) && got.cause == nil {
			t.Errorf("%v: the cause is lost", tt.err)
		}
	}
	if AsError(nil) != nil {
		t.Error("nil is an error")
	}
}

// TestShrink: a source that is cut while it is read is an error of the source, and
// there is no image.
func TestShrink(t *testing.T) {
	c := connect(t, newStore(t))
	path := filepath.Join(t.TempDir(), "a.img")
	if err := os.WriteFile(path, make([]byte, 40<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	call := &call{emit: func(Event) { // the first report comes before the first read
		if err := os.Truncate(path, 1<<20); err != nil {
			t.Error(err)
		}
	}}
	_, err := c.local.importImage(context.Background(), call, ImportRequest{Path: path, Name: "a"})
	if got := AsError(err); got == nil || got.Code != CodeSource {
		t.Errorf("got %v, want code %s", err, CodeSource)
	}
	if names := must[[]string](t, c, OpNames, Nothing{}); len(names) != 0 {
		t.Errorf("images %q, want none", names)
	}
}
