package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/fs"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/convert"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/internal/exchange"
	"github.com/sealdisk/sealdisk/internal/home"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
	"github.com/sealdisk/sealdisk/transfer/qemu"
)

// Code says what kind of failure an [Error] is. Codes are part of the API and
// are never reused.
type Code string

// The codes.
const (
	CodeInternal    Code = "internal"
	CodeUsage       Code = "usage"
	CodeNotFound    Code = "not-found"
	CodeExists      Code = "exists"
	CodeInUse       Code = "in-use"
	CodeNoKey       Code = "no-key"
	CodeCorrupt     Code = "corrupt"
	CodeFormat      Code = "format"
	CodeNoSpace     Code = "no-space"
	CodeSource      Code = "source"
	CodeLease       Code = "lease"
	CodeRolledBack  Code = "rolled-back"
	CodePermission  Code = "permission"
	CodePeer        Code = "peer"
	CodeInterrupted Code = "interrupted"
)

// Error is a failed operation, as it travels over the API.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what the user can do
	cause   error
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the cause; it is lost on the way through the API.
func (e *Error) Unwrap() error { return e.cause }

func fail(code Code, hint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Hint: hint, cause: errors.Unwrap(err)}
}

// failures gives the code and hint of each sentinel. The first that fits counts.
var failures = []struct {
	is   error
	code Code
	hint string
}{
	{context.Canceled, CodeInterrupted, ""},
	{qemu.ErrMonitor, CodeInUse, "is that the QMP socket of a running QEMU, which nobody else uses?"},
	{format.ErrShrunk, CodeSource, "the source must not change while it is imported"},
	{format.ErrInUse, CodeInUse, "stop what writes it, or import a snapshot of it"},
	{format.ErrEncrypted, CodeSource, "decrypt it with its own tools first"},
	{format.ErrUnsupported, CodeSource, ""},
	{format.ErrCorrupt, CodeSource, ""},
	{format.ErrChain, CodeSource, ""},
	{errSource, CodeSource, ""},
	{convert.ErrEmpty, CodeSource, ""},
	{blockstore.ErrNoSpace, CodeNoSpace, "free space in the store's file system; sealdisk gc gives back what removed images held"},
	{unix.ENOSPC, CodeNoSpace, ""},
	{blockstore.ErrFormat, CodeFormat, "this program is older than the store; use the one that wrote it"},
	{crypto.ErrSuite, CodeFormat, ""},
	{image.ErrRolledBack, CodeRolledBack, "the store is older than what this host has seen: an old copy was put in its place"},
	{image.ErrFork, CodeRolledBack, ""},
	{image.ErrNotHolder, CodeLease, ""},
	{image.ErrReadOnly, CodeLease, ""},
	{image.ErrNoSnapshot, CodeNotFound, "sealdisk info NAME lists its snapshots"},
	{image.ErrExists, CodeExists, ""},
	{image.ErrInUse, CodeInUse, ""},
	{image.ErrShrink, CodeUsage, "a disk only grows; import under another name to make it smaller"},
	{image.ErrTooLarge, CodeUsage, ""},
	{home.ErrNoHostKey, CodeNoKey, "sealdisk init makes one; --home names another"},
	{home.ErrNoIdentity, CodeNoKey, "restore it from its copy; without it no image can be opened"},
	{home.ErrNoRecipient, CodeNoKey, ""},
	{crypto.ErrIdentity, CodeNoKey, ""},
	{crypto.ErrNoIdentity, CodeNoKey, "the image is not sealed to this host's identity: ask someone who has it to add this host's recipient"},
	{crypto.ErrHostKey, CodeNoKey, ""},
	{crypto.ErrClassic, CodeUsage, "--allow-classic accepts recipients that a quantum computer may break"},
	{crypto.ErrRecipient, CodeUsage, "a recipient is age1…, ssh-ed25519 … or ssh-rsa …"},
	{record.ErrNoEpoch, CodeNoKey, ""},
	{crypto.ErrMasterKey, CodeCorrupt, ""},
	{crypto.ErrAuth, CodeCorrupt, "sealdisk verify names what is damaged"},
	{blockstore.ErrCorrupt, CodeCorrupt, "sealdisk verify names what is damaged"},
	{blockstore.ErrNotFound, CodeCorrupt, "sealdisk verify names what is missing"},
	{blockstore.ErrExists, CodeExists, ""},
	{fs.ErrNotExist, CodeNotFound, ""},
	{fs.ErrNotDirectory, CodeUsage, ""},
	{fs.ErrNotEmpty, CodeInUse, ""},
	{fs.ErrMounted, CodeInUse, ""},
	{fs.ErrDead, CodeInUse, ""},
	{fs.ErrNoHelper, CodePermission, ""},
	{fs.ErrNoFUSE, CodePermission, ""},
	{fs.ErrNotAllowed, CodePermission, ""},
	{fs.ErrAllowOther, CodePermission, ""},
	{fs.ErrBusy, CodeInUse, "close the files, or --force detaches it while they are open"},
	{iofs.ErrNotExist, CodeNotFound, ""},
	{iofs.ErrExist, CodeExists, "--force replaces it"},
	{iofs.ErrPermission, CodePermission, ""},
	{unix.EBUSY, CodeInUse, ""},
	{peer.ErrNotPinned, CodePeer, "sealdisk peer ls shows the fingerprints; each host must have added the other"},
	{peer.ErrUnknown, CodeNotFound, "sealdisk peer add NAME ADDRESS FINGERPRINT makes a host known"},
	{peer.ErrExists, CodeExists, "sealdisk peer rm forgets a peer"},
	{peer.ErrInvalid, CodeUsage, ""},
	{exchange.ErrNotAllowed, CodePeer, "sealdisk peer allow PEER replica|host [NAME…] says what a peer may do"},
	{exchange.ErrNoSource, CodePeer, "what is here stays usable; the rest comes when a source is there again"},
	{exchange.ErrGuest, CodeInUse, ""},
	{exchange.ErrHeld, CodePeer, "QMP cont lets it run: at the peer, once what its log says is mended, or here"},
	{exchange.ErrMoved, CodePeer, ""},
	{qemu.ErrFailed, CodePeer, "the guest runs on where it was, or is paused there: QEMU's log says why"},
	{transfer.ErrNoImage, CodeNotFound, "the peer has no such image, or does not let this host have it: sealdisk peer allow there"},
	{transfer.ErrRefused, CodePeer, ""},
	{transfer.ErrNoSource, CodePeer, "what came is kept; the same command goes on where it was"},
	{transfer.ErrAbsent, CodePeer, ""},
	{transfer.ErrConnection, CodePeer, "each of the two hosts must have added the other; what came is kept, and the same command goes on where it was"},
	{transfer.ErrProtocol, CodePeer, ""},
	{context.DeadlineExceeded, CodeInUse, ""},
	{unix.ECONNREFUSED, CodePeer, "is sealdisk serve --listen running there?"},
	{io.ErrUnexpectedEOF, CodePeer, ""},
}

// errSource marks a source that cannot be read.
var errSource = errors.New("source cannot be read")

// AsError gives the Error that stands for err; nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var inUse *blockstore.InUseError
	if errors.As(err, &inUse) {
		return &Error{Code: CodeInUse, Message: err.Error(), Hint: "wait for that process, or end it", cause: err}
	}
	out := &Error{Code: CodeInternal, Message: err.Error(), cause: err}
	var network *net.OpError
	if errors.As(err, &network) {
		out.Code = CodePeer
	}
	for _, f := range failures {
		if errors.Is(err, f.is) {
			out.Code, out.Hint = f.code, f.hint
			break
		}
	}
	var mount *fs.MountError
	if errors.As(err, &mount) {
		out.Hint = mount.Hint
	}
	return out
}
