package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/convert"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/plan"
	"github.com/sealdisk/sealdisk/image/record"
)

// importSnapshot is the snapshot of an imported backing file from which the
// images that depend on it are cloned, whatever happens to the image itself.
const importSnapshot = "import"

// importing is one import.
type importing struct {
	d *Daemon
	c *call
	r ImportRequest
	o convert.ImportOptions
}

func (d *Daemon) importImage(ctx context.Context, c *call, r ImportRequest) (any, error) {
	in := &importing{d: d, c: c, r: r}
	if err := in.prepare(); err != nil {
		return nil, err
	}
	if r.Update {
		return in.update(ctx)
	}
	release, err := d.names.reserve(r.Name)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.growing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer d.growing.Release(1)
	switch {
	case r.Path == "":
		return in.stream(ctx)
	case r.Base != "":
		return in.onBase(ctx)
	}
	return in.chain(ctx)
}

// prepare checks the request and turns it into options.
func (in *importing) prepare() error {
	if err := checkName("image", in.r.Name); err != nil {
		return err
	}
	in.o.Progress = in.c.progress
	in.o.Create.Admins = in.d.host.Admins
	in.o.Create.BlockSize = in.r.BlockSize
	in.o.Create.Recipients = slices.Clone(in.d.host.Recipients)
	if err := crypto.CheckClasses(in.r.Recipients, in.r.AllowClassic); err != nil {
		return err
	}
	for _, s := range in.r.Recipients {
		if _, _, err := crypto.ParseRecipient(s); err != nil {
			return err
		}
		c, err := crypto.CanonicalRecipient(s)
		if err != nil {
			return err
		}
		if !slices.Contains(in.o.Create.Recipients, c) {
			in.o.Create.Recipients = append(in.o.Create.Recipients, c)
		}
	}
	if in.r.BlockSize != 0 {
		if err := plan.CheckBlockSize(in.r.BlockSize); err != nil {
			return fail(CodeUsage, "", "%w", err)
		}
	}
	if in.r.Link != "" {
		l, err := plan.ParseLink(in.r.Link)
		if err != nil {
			return fail(CodeUsage, "", "%w", err)
		}
		in.o.Link = &l
	}
	in.o.Create.Compression = record.Zstd
	if in.r.Compress != "" {
		c, err := record.ParseCompression(in.r.Compress)
		if err != nil {
			return fail(CodeUsage, "", "%w", err)
		}
		in.o.Create.Compression = c
	}
	return in.checkFlags()
}

func (in *importing) checkFlags() error {
	switch {
	case in.r.Path == "" && (in.r.Update || in.r.Base != ""):
		return fail(CodeUsage, "", "a stream can be compared with nothing: --update and --base need a file")
	case in.r.Path == "" && in.r.Format != "" && in.r.Format != format.Raw:
		return fail(CodeUsage, "", "a stream is a raw image; format %s needs a file", in.r.Format)
	case in.r.Update && (in.r.Base != "" || len(in.r.Recipients) > 0):
		return fail(CodeUsage, "sealdisk recipients changes recipients", "--update keeps base and recipients as they are")
	case in.r.Path != "" && !filepath.IsAbs(in.r.Path):
		return fail(CodeUsage, "", "path %q is not absolute", in.r.Path)
	}
	return nil
}

func (in *importing) labels(name string, kind format.Kind, source string) map[string]string {
	l := map[string]string{"name": name, "kind": kind.String()}
	if source != "" {
		l["source"] = source
	}
	return l
}

func (in *importing) open(ctx context.Context, path, as string) (format.Source, error) {
	src, err := format.Open(ctx, path, format.Options{Format: as, Logger: in.d.log})
	return src, sourceError(err)
}

// sourceError makes what the file system says about a source an error of the
// source: "no such file" is not "no such image".
func sourceError(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return fmt.Errorf("%w: %w", errSource, err)
	}
	return err
}

// source marks errors of reading as the source's.
type source struct{ format.Source }

func (s source) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.Source.ReadAt(p, off)
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.ENXIO) {
		err = fmt.Errorf("%w: %w", errSource, err)
	}
	return n, err
}

// list gives a finished image its name, or drops it.
func (in *importing) list(ctx context.Context, e record.Entry) error {
	err := in.d.names.add(ctx, e)
	if err != nil {
		return errors.Join(err, in.d.drop(context.WithoutCancel(ctx), e.Image))
	}
	in.d.changed(diskKey{id: e.Image}, e.Name)
	return nil
}

func (in *importing) result(done convert.Imported) Imported {
	return Imported{
		Name: in.r.Name, ID: done.ID.String(), Size: done.Size, Read: done.Read,
		Segments: &Segments{done.Plan.Planned, done.Plan.Merged, done.Plan.Count, done.Plan.ReductionPercent},
	}
}

func (in *importing) stream(ctx context.Context) (any, error) {
	in.o.Create.Labels = in.labels(in.r.Name, format.Fixed, "")
	done, err := convert.ImportStream(ctx, in.d.shared, in.c.body, in.o)
	if err != nil {
		return nil, err
	}
	return in.result(done), in.list(ctx, record.Entry{Name: in.r.Name, Image: done.ID, Labels: in.o.Create.Labels})
}

// whole imports a source with all it depends on as one image.
func (in *importing) whole(ctx context.Context, l format.Layer, name, print string) (convert.Imported, error) {
	src, err := in.open(ctx, l.Path, l.Format)
	if err != nil {
		return convert.Imported{}, err
	}
	defer src.Close()
	in.o.Create.Labels = in.labels(name, src.Kind(), print)
	done, err := convert.Import(ctx, in.d.shared, source{src}, in.o)
	if err != nil {
		return done, err
	}
	return done, in.list(ctx, record.Entry{Name: name, Image: done.ID, Labels: in.o.Create.Labels})
}

// update brings an image up to date, in place: nobody else may use it.
func (in *importing) update(ctx context.Context) (any, error) {
	e, key, err := in.d.findWhole(in.r.Name)
	if err != nil {
		return nil, err
	}
	src, err := in.open(ctx, in.r.Path, in.r.Format)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	var done convert.Updated
	err = in.d.with(ctx, key, alone, func(disk *image.Disk) (err error) {
		done, err = convert.Update(ctx, disk, source{src}, convert.UpdateOptions{Progress: in.c.progress})
		return err
	})
	if errors.Is(err, image.ErrInUse) {
		return nil, inUse(e.Name)
	}
	in.d.changed(key, e.Name)
	return Imported{Name: e.Name, ID: e.Image.String(), Size: src.Size(), Read: done.Read, Changed: done.Changed}, err
}

// onBase clones an image that the user names and stores what differs. All is
// compared, so that a wrong base costs space and nothing else.
func (in *importing) onBase(ctx context.Context) (any, error) {
	_, base, err := in.d.find(in.r.Base)
	if err != nil {
		return nil, err
	}
	src, err := in.open(ctx, in.r.Path, in.r.Format)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	done, id, err := in.derive(ctx, base, in.r.Name, "", src, false)
	if err != nil {
		return nil, err
	}
	return Imported{Name: in.r.Name, ID: id.String(), Size: src.Size(), Read: done.Read, Changed: done.Changed}, nil
}

// derive makes the image name out of a clone of base and what of src differs.
func (in *importing) derive(ctx context.Context, base diskKey, name, print string, src format.Source, own bool) (done convert.Updated, id blockstore.ImageID, err error) {
	e := record.Entry{Name: name, Labels: in.labels(name, format.Dependent, print)}
	id, err = in.d.makeClone(ctx, base, e, func(disk *image.Disk) error {
		if err := in.addRecipients(ctx, disk); err != nil {
			return err
		}
		done, err = convert.Update(ctx, disk, source{src}, convert.UpdateOptions{OwnOnly: own, Progress: in.c.progress})
		return err
	})
	return done, id, err
}

// addRecipients gives a clone the recipients that the user asked for.
func (in *importing) addRecipients(ctx context.Context, disk *image.Disk) error {
	missing := func(r string) bool { return !slices.Contains(disk.Recipients(), r) }
	if !slices.ContainsFunc(in.o.Create.Recipients, missing) {
		return nil
	}
	return disk.SetRecipients(ctx, func(now []string) ([]string, error) {
		return changeRecipients(now, RecipientsRequest{Add: in.o.Create.Recipients})
	})
}

// chain imports an image with the files that it depends on: each layer becomes
// an image of its own, a clone of the one below with only its own changes.
func (in *importing) chain(ctx context.Context) (any, error) {
	layers, err := format.Chain(ctx, in.r.Path, format.Options{Format: in.r.Format, Logger: in.d.log})
	if err != nil {
		return nil, sourceError(err)
	}
	top := layers[len(layers)-1]
	if shrinks(layers) {
		layers = layers[len(layers)-1:] // a clone cannot be smaller: one image, all its own
	}
	if len(layers) == 1 {
		done, err := in.whole(ctx, top, in.r.Name, "")
		if err != nil {
			return nil, err
		}
		return in.result(done), nil
	}
	var bases []string
	var below *diskKey
	for _, l := range layers[:len(layers)-1] {
		key, name, err := in.layer(ctx, l, below)
		if err != nil {
			return nil, fmt.Errorf("backing file %s: %w", l.Path, err)
		}
		below, bases = &key, append(bases, name)
	}
	src, err := in.open(ctx, top.Path, top.Format)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	done, id, err := in.derive(ctx, *below, in.r.Name, "", src, true)
	if err != nil {
		return nil, err
	}
	return Imported{Name: in.r.Name, ID: id.String(), Size: src.Size(), Read: done.Read, Changed: done.Changed, Bases: bases}, nil
}

func shrinks(layers []format.Layer) bool {
	for i := 1; i < len(layers); i++ {
		if layers[i].Size < layers[i-1].Size {
			return true
		}
	}
	return false
}

// layer finds the image of a backing file that was imported before, or imports
// it. What it returns is the snapshot that holds what the file holds.
func (in *importing) layer(ctx context.Context, l format.Layer, below *diskKey) (diskKey, string, error) {
	print, err := sourcePrint(l, below)
	if err != nil {
		return diskKey{}, "", err
	}
	for _, e := range in.d.names.list() {
		if e.Labels["source"] == print {
			key := diskKey{id: e.Image, snapshot: importSnapshot}
			if _, err := in.d.look(ctx, key); err == nil {
				in.c.note("%s is image %s", l.Path, e.Name)
				return key, e.Name, nil
			}
		}
	}
	name, release, err := in.freeName(l.Path, print)
	if err != nil {
		return diskKey{}, "", err
	}
	defer release()
	in.c.note("importing %s as %s", l.Path, name)
	var id blockstore.ImageID
	if below == nil {
		done, err := in.whole(ctx, l, name, print)
		if err != nil {
			return diskKey{}, "", err
		}
		id = done.ID
	} else {
		src, err := in.open(ctx, l.Path, l.Format)
		if err != nil {
			return diskKey{}, "", err
		}
		defer src.Close()
		if _, id, err = in.derive(ctx, *below, name, print, src, true); err != nil {
			return diskKey{}, "", err
		}
	}
	err = in.d.with(ctx, diskKey{id: id}, holds, func(disk *image.Disk) error { return disk.Snapshot(ctx, importSnapshot) })
	in.d.looks.forget(diskKey{id: id})
	return diskKey{id: id, snapshot: importSnapshot}, name, err
}

// sourcePrint stands for the content of a file that nobody writes, and for that
// of the files below it.
func sourcePrint(l format.Layer, below *diskKey) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(l.Path, &st); err != nil {
		return "", sourceError(&os.PathError{Op: "stat", Path: l.Path, Err: err})
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d %d %d %d.%09d %s", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, l.Format)
	if below != nil {
		h.Write(below.id[:])
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// freeName reserves a name for the image of a backing file: the file's.
func (in *importing) freeName(path, print string) (name string, release func(), err error) {
	stem := filepath.Base(path)
	stem = strings.TrimSuffix(stem, filepath.Ext(stem))
	stem = strings.Map(func(r rune) rune {
		if r < 128 && nameRule.MatchString("a"+string(r)) {
			return r
		}
		return '-'
	}, stem)
	stem = fmt.Sprintf("%.100s", strings.TrimLeft(stem, "._-"))
	for _, name := range []string{stem, stem + "-" + print[:8], "base-" + print} {
		if release, err = in.d.names.reserve(name); err == nil {
			return name, release, nil
		}
	}
	return "", nil, err
}

func (d *Daemon) export(ctx context.Context, c *call, r ExportRequest) (any, error) {
	_, key, err := d.find(r.Name)
	if err != nil {
		return nil, err
	}
	if r.Format == "" {
		r.Format = format.Raw
	}
	if r.Format != format.Raw && r.Format != format.Qcow2 {
		return nil, fail(CodeUsage, "qemu-img convert makes the others", "an export is raw or qcow2, not %s", r.Format)
	}
	if !filepath.IsAbs(r.Path) {
		return nil, fail(CodeUsage, "", "path %q is not absolute", r.Path)
	}
	// A copy that stands still has objects that the image has left since: the
	// collector waits.
	if err := d.growing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer d.growing.Release(1)
	out := Exported{Path: r.Path}
	err = d.with(ctx, key, holds, func(live *image.Disk) (err error) {
		disk, release, err := live.Still(ctx) // what a guest writes meanwhile must not tear the copy
		if err != nil {
			return err
		}
		defer release()
		w, err := format.Create(r.Path, r.Format, disk.Size(), r.Force)
		if err != nil {
			return err
		}
		defer func() {
			if abort := w.Abort(); abort != nil { // nothing, after Commit
				err = errors.Join(err, fmt.Errorf("daemon: %w", abort))
			}
		}()
		out.Size = disk.Size()
		if out.Data, err = convert.Export(ctx, disk, w, c.progress); err != nil {
			return err
		}
		return w.Commit()
	})
	return out, err
}
