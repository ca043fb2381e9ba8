package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/internal/daemon"
)

// env is what all commands share: where the store is and how to speak to the user.
type env struct {
	store, home string
	json, quiet bool
	out, err    io.Writer
	log         *slog.Logger
	terminal    bool // stderr is one
	failed      error
	profiles    profiles

	mu  sync.Mutex // guards bar
	bar *progressbar.ProgressBar
}

func newEnv(c *cli.Context) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return usage("--log-level %q is not debug, info, warn or error", c.String("log-level"))
	}
	e := &env{
		json: c.Bool("json"), quiet: c.Bool("quiet"), out: c.App.Writer, err: c.App.ErrWriter,
		log:      slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level})),
		terminal: term.IsTerminal(int(os.Stderr.Fd())),
	}
	var err error
	if e.store, err = absolute("store", c.String("store")); err != nil {
		return err
	}
	if e.home, err = absolute("home", c.String("home")); err != nil {
		return err
	}
	c.App.Metadata[envKey] = e
	return e.profiles.begin(c)
}

func absolute(flag, path string) (string, error) {
	if path == "" {
		return "", usage("--%s is not set and has no default here", flag)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("--%s: %w", flag, err)
	}
	return abs, nil
}

func envOf(c *cli.Context) *env { return c.App.Metadata[envKey].(*env) }

func (e *env) options(c *cli.Context) daemon.Options {
	return daemon.Options{Store: e.store, Home: e.home, Prompt: e.prompt(), Log: e.log, Command: c.Command.HelpName}
}

// call runs one operation of the daemon that owns the store, in this process if
// there is no other.
func (e *env) call(c *cli.Context, op string, request any, body io.Reader, result any) (err error) {
	conn, err := daemon.Connect(c.Context, e.options(c))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	defer e.endProgress()
	return conn.Call(c.Context, op, request, body, result, e.show)
}

// print writes a result: as JSON if that was asked for, else as text does.
func (e *env) print(result any, text func(w io.Writer)) error {
	w := bufio.NewWriter(e.out)
	if e.json {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(result); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	} else {
		text(w)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// say writes a line for people, unless they asked for quiet.
func (e *env) say(format string, args ...any) {
	if e.quiet {
		return
	}
	e.endProgress()
	fmt.Fprintf(e.err, "sealdisk: "+format+"\n", args...)
}

// show takes the events of an operation.
func (e *env) show(ev daemon.Event) {
	switch {
	case ev.Note != "":
		e.say("%s", ev.Note)
	case ev.Stage != nil && e.json && !e.quiet:
		if err := json.NewEncoder(e.err).Encode(ev.Stage); err != nil {
			e.log.Debug("a stage that nobody sees", "err", err)
		}
	case ev.Stage != nil:
		e.stage(ev.Stage)
	case ev.Progress != nil && e.terminal && !e.quiet && !e.json:
		e.progress(ev.Progress.Done, ev.Progress.Total)
	}
}

func (e *env) progress(done, total int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if total == 0 {
		total = -1 // unknown: a spinner with the rate
	}
	if e.bar == nil {
		e.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(e.err), progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true), progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish())
	}
	if total != e.bar.GetMax64() {
		e.bar.ChangeMax64(total)
	}
	_ = e.bar.Set64(done) // what cannot be drawn is not missed
}

func (e *env) endProgress() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bar != nil {
		_ = e.bar.Clear()
		e.bar = nil
	}
}

// Where a passphrase comes from when nobody can be asked.
const (
	passphraseFile = "SEALDISK_PASSPHRASE_FILE" // path of a file; its first line counts
	passphraseFD   = "SEALDISK_PASSPHRASE_FD"   // number of an open descriptor; its first line counts
)

// prompt asks for secrets: the environment's file or descriptor, else the terminal.
func (e *env) prompt() crypto.Prompt {
	return crypto.Prompt{
		Ask: func(what string) (string, error) {
			if strings.HasPrefix(what, "passphrase") {
				if pass, ok, err := givenPassphrase(); ok || err != nil {
					return pass, err
				}
			}
			e.endProgress()
			return askTerminal(what)
		},
		Show: func(message string) { e.say("%s", message) },
	}
}

func givenPassphrase() (pass string, ok bool, err error) {
	var f *os.File
	if path := os.Getenv(passphraseFile); path != "" {
		if f, err = os.Open(path); err != nil {
			return "", false, fmt.Errorf("%s: %w", passphraseFile, err)
		}
	} else if s := os.Getenv(passphraseFD); s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return "", false, usage("%s is not a number", passphraseFD)
		}
		f = os.NewFile(uintptr(n), passphraseFD)
	}
	if f == nil {
		return "", false, nil
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", false, fmt.Errorf("read passphrase: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), true, nil
}

func askTerminal(what string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", &daemon.Error{Code: daemon.CodeNoKey, Message: what + " is needed and there is no terminal to ask", Hint: passphraseFile + " or " + passphraseFD + " can name where it is"}
	}
	defer tty.Close()
	fmt.Fprintf(tty, "%s: ", what)
	b, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	return string(b), nil
}

// parseSize reads a number of bytes, with K, M, G, T or P for powers of 1024.
func parseSize(s string) (int64, error) {
	number, shift := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I"), 0
	if n := len(number); n > 0 {
		if i := strings.IndexByte("KMGTP", number[n-1]); i >= 0 {
			number, shift = number[:n-1], 10*(i+1)
		}
	}
	v, err := strconv.ParseInt(number, 10, 64)
	if err != nil || v < 0 || v<<shift>>shift != v {
		return 0, usage("%q is not a size, such as 4096, 512K or 20G", s)
	}
	return v << shift, nil
}

func bytesText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
