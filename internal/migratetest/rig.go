package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// rig is the network and the hosts on it.
type rig struct {
	dir      string // of all files
	tag      string // before the names of namespaces
	sealdisk string
	kernel   string
	initrd   string
	hosts    map[string]*host
	verbose  bool
	small    int64 // bytes of a file system for each store alone; 0: none
	mu       sync.Mutex
	started  []*process
}

// host is one namespace with a daemon in it.
type host struct {
	rig             *rig
	name, address   string
	dir, mnt, qmps  string
	daemon          *process
	fingerprintText string
}

// process is a program that was started in the background.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it was waited for
	err  error         // valid then

	mu  sync.Mutex
	log bytes.Buffer
	new chan struct{} // closed and replaced when there is more in log
}

// Write takes what the program says.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log.Write(b)
	close(p.new)
	p.new = make(chan struct{})
	return len(b), nil
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// says returns when the program has said a text.
func (p *process) says(ctx context.Context, text string) error {
	for {
		p.mu.Lock()
		said, more := strings.Contains(p.log.String(), text), p.new
		p.mu.Unlock()
		if said {
			return nil
		}
		select {
		case <-more:
		case <-p.done:
			return fmt.Errorf("%s ended (%v) and never said %q: %s", filepath.Base(p.cmd.Path), p.err, text, tail(p.text()))
		case <-ctx.Done():
			return fmt.Errorf("%s never said %q: %s", filepath.Base(p.cmd.Path), text, tail(p.text()))
		}
	}
}

func tail(s string) string { return strings.TrimSpace(s[max(0, len(s)-1500):]) }

// end ends the program by a signal and waits for it.
func (p *process) end(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig) // it may have ended
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// start starts a program in the background.
func (r *rig) start(stdout io.Writer, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{}), new: make(chan struct{})}
	p.cmd.Stderr = p
	p.cmd.Stdout = stdout
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = append(r.started, p)
	return p, nil
}

// run runs a program to its end and gives its output.
func run(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, tail(errOut.String()))
	}
	return out.String(), nil
}

// note prints what is not a result.
func (r *rig) note(format string, args ...any) {
	if r.verbose {
		text := fmt.Sprintf(format, args...)
		fmt.Println("      " + strings.ReplaceAll(text, "\n", "\n      "))
	}
}

func (r *rig) namespace(name string) string { return r.tag + "-" + name }

// in gives a command line that runs in the network of a namespace and in the mounts of all.
func (r *rig) in(name string, args ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + r.namespace(name)}, args...)
}

// newRig makes hosts that may do everything with each other.
func newRig(dir string, o options, small int64, names ...string) (r *rig, err error) {
	r = &rig{dir: dir, tag: fmt.Sprintf("sdm%d", os.Getpid()), sealdisk: o.sealdisk, kernel: o.kernel, initrd: o.initrd, verbose: o.verbose, small: small, hosts: map[string]*host{}}
	if err := r.network(names); err != nil {
		return r, err
	}
	for _, name := range names {
		if err := r.hosts[name].begin(); err != nil {
			return r, err
		}
	}
	for _, x := range names {
		for _, y := range names {
			if x == y {
				continue
			}
			if _, err := r.hosts[x].do("peer", "add", y, r.hosts[y].address+":7443", r.hosts[y].fingerprintText); err != nil {
				return r, err
			}
			if _, err := r.hosts[x].do("peer", "allow", y, "host"); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// network makes a namespace for each host and one for the switch between them.
func (r *rig) network(names []string) error {
	steps := [][]string{{"ip", "netns", "add", r.namespace("sw")}, r.in("sw", "ip", "link", "add", "name", "br0", "type", "bridge"), r.in("sw", "ip", "link", "set", "br0", "up")}
	for i, name := range names {
		h := &host{rig: r, name: name, address: fmt.Sprintf("10.78.0.%d", i+1), dir: filepath.Join(r.dir, name)}
		h.mnt, h.qmps = filepath.Join(h.dir, "mnt"), filepath.Join(h.dir, "qmp")
		r.hosts[name] = h
		steps = append(steps, []string{"ip", "netns", "add", r.namespace(name)},
			r.in(name, "ip", "link", "set", "lo", "up"),
			r.in(name, "ip", "link", "add", "name", "eth", "type", "veth", "peer", "name", name, "netns", r.namespace("sw")),
			r.in(name, "ip", "addr", "add", h.address+"/24", "dev", "eth"),
			r.in(name, "ip", "link", "set", "dev", "eth", "up"),
			r.in("sw", "ip", "link", "set", "dev", name, "master", "br0"),
			r.in("sw", "ip", "link", "set", "dev", name, "up"))
	}
	for _, s := range steps {
		if _, err := run(s...); err != nil {
			return err
		}
	}
	return nil
}

// limit makes all links that fast, both ways; "" takes the bound away.
func (r *rig) limit(rate string) error {
	for name := range r.hosts {
		for _, at := range [][2]string{{name, "eth"}, {"sw", name}} {
			args := []string{"tc", "qdisc", "replace", "dev", at[1], "root", "tbf", "rate", rate, "burst", "128kb", "latency", "50ms"}
			if rate == "" {
				args = []string{"tc", "qdisc", "replace", "dev", at[1], "root", "pfifo"}
			}
			if _, err := run(r.in(at[0], args...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// close takes everything down.
func (r *rig) close() error {
	var errs []error
	daemons := map[*process]bool{}
	for _, h := range r.hosts {
		daemons[h.daemon] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.started {
		if !daemons[p] { // these have files of the daemons open
			p.end(syscall.SIGKILL)
		}
	}
	for p := range daemons {
		if p != nil {
			p.end(syscall.SIGINT)
		}
	}
	for name := range r.hosts {
		_, _ = run("umount", "-l", filepath.Join(r.dir, name, "mnt")) // of a daemon that was killed
		if r.small > 0 {
			_, err := run("umount", "-l", filepath.Join(r.dir, name, "store"))
			errs = append(errs, err)
		}
		_, err := run("ip", "netns", "del", r.namespace(name))
		errs = append(errs, err)
	}
	_, err := run("ip", "netns", "del", r.namespace("sw"))
	return errors.Join(append(errs, err, os.RemoveAll(r.dir))...)
}

// begin makes a host's store and starts its daemon.
func (h *host) begin() error {
	for _, dir := range []string{h.mnt, h.qmps, h.store()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if h.rig.small > 0 {
		if _, err := run("mount", "-t", "tmpfs", "-o", fmt.Sprintf("mode=0700,size=%d", h.rig.small), "none", h.store()); err != nil {
			return err
		}
	}
	if _, err := h.do("init"); err != nil {
		return err
	}
	text, err := h.do("peer", "ls", "--json")
	if err != nil {
		return err
	}
	var ls struct {
		Fingerprint string `json:"fingerprint"`
	}
	if err := json.Unmarshal([]byte(text), &ls); err != nil {
		return err
	}
	h.fingerprintText = ls.Fingerprint
	return h.serve()
}

// sourceTimeout is how long readers wait for what is missing.
const sourceTimeout = 45 * time.Second

func (h *host) store() string { return filepath.Join(h.dir, "store") }

// serve starts the daemon.
func (h *host) serve() (err error) {
	h.daemon, err = h.rig.start(nil, h.args("serve", "--listen", h.address+":7443", "--mount", h.mnt, "--guests", h.qmps, "--source-timeout", sourceTimeout.String())...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return h.daemon.says(ctx, "mounted at")
}

func (h *host) args(args ...string) []string {
	return h.rig.in(h.name, append([]string{h.rig.sealdisk, "--store", h.store(), "--home", filepath.Join(h.dir, "home")}, args...)...)
}

// do runs a command of sealdisk as that host.
func (h *host) do(args ...string) (string, error) { return run(h.args(args...)...) }

// file is where an image is mounted.
func (h *host) file(name string) string { return filepath.Join(h.mnt, name) }

// lines gives each line of a stream, until it ends.
func lines(r io.Reader, each func(string)) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		each(s.Text())
	}
}
