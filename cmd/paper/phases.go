package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sealdisk/sealdisk/cmd/paper/page"
	"github.com/sealdisk/sealdisk/image/convert"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/plan"
	"github.com/sealdisk/sealdisk/internal/daemon"
)

// measureSet measures the ten machines in one unit. Each round is a path by each way; the image is
// made once, and is in the page cache.
func (e *evaluation) measureSet(ctx context.Context, s set) (page.Set, error) {
	out := page.Set{Unit: s.unit, Bytes: s.bytes, Share: s.share, Rounds: s.rounds}
	for _, m := range page.Machines {
		im, err := e.measureMachine(ctx, s, m)
		if err != nil {
			return out, fmt.Errorf("machine %d, %d %s: %w", m.Number, m.Figure, s.unit, err)
		}
		e.say("%2d  %2d %s %-6s  loopback %.1f ms, 1 Gbit/s %.1f ms", m.Number, m.Figure, s.unit, m.Kind(),
			im.Total(page.Loopback), im.Total(page.Gigabit))
		out.Images = append(out.Images, im)
	}
	return out, nil
}

func (e *evaluation) measureMachine(ctx context.Context, s set, m page.Machine) (out page.Image, err error) {
	in, err := e.makeInput(ctx, s, m)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, e.dropInput(in)) }()
	c, err := contentOf(ctx, in.file)
	if err != nil {
		return out, err
	}
	out = page.Image{Machine: m, Size: m.Figure * s.bytes, Data: c.bytes, Digest: c.digest}
	list := bootList(c, m.Number)
	for round := range s.rounds {
		if err := e.round(ctx, in, round, c.digest, list, &out); err != nil {
			return out, err
		}
	}
	if !s.sparse { // large ones show nothing else than the small ones
		err = e.asCommands(ctx, in, &out)
	}
	return out, err
}

// round takes an image along each way, in another order each time, and then looks how soon it can be used.
func (e *evaluation) round(ctx context.Context, in *input, round int, digest string, list []span, out *page.Image) error {
	if err := e.settle(); err != nil {
		return err
	}
	segmentation, planned, err := segment(ctx, in.source)
	if err != nil {
		return err
	}
	var imported daemon.Imported
	request := daemon.ImportRequest{Path: in.source, Name: in.name, Format: format.Raw}
	for _, sink := range e.sinks {
		request.Recipients = append(request.Recipients, sink.Recipients...)
	}
	took, err := e.source.ask(ctx, daemon.OpImport, request, &imported)
	if err != nil {
		return err
	}
	if got := (plan.Report)(*imported.Segments); got != planned {
		return fmt.Errorf("the import planned %+v, the plan alone %+v", got, planned)
	}
	out.Segments = page.Segments{Planned: planned.Planned, Merged: planned.Merged, Left: planned.Count, Reduction: planned.ReductionPercent}
	segmentation = min(segmentation, took) // sealing may be hidden behind it
	p := page.Phases{Segmentation: ms(segmentation), Sealing: ms(took - segmentation)}
	for i := range page.Ways {
		way := (page.Way(i) + page.Way(round)) % page.Ways
		if err := e.carry(ctx, in, way, p, digest, out); err != nil {
			return fmt.Errorf("%v: %w", way, err)
		}
	}
	if err := e.starts(ctx, in, list, out); err != nil {
		return err
	}
	return e.source.remove(ctx, in.name)
}

// segment plans an image as an import does, and times that.
func segment(ctx context.Context, source string) (time.Duration, plan.Report, error) {
	began := time.Now()
	src, err := format.Open(ctx, source, format.Options{Format: format.Raw})
	if err != nil {
		return 0, plan.Report{}, err
	}
	report, err := convert.Plan(ctx, src, convert.ImportOptions{})
	took := time.Since(began)
	return took, report, errors.Join(err, src.Close())
}

// carry brings an image to a destination and makes it a file there. p is what was measured at the source.
func (e *evaluation) carry(ctx context.Context, in *input, way page.Way, p page.Phases, digest string, out *page.Image) error {
	sink := e.sinks[way]
	pulled, transmission, err := sink.pull(ctx, in.name, false)
	if err != nil {
		return err
	}
	file := e.path("out.raw")
	exporting, err := sink.ask(ctx, daemon.OpExport, daemon.ExportRequest{Name: in.name, Path: file}, nil)
	if err != nil {
		return err
	}
	collation, err := collate(ctx, file, e.path("again.raw"))
	if err != nil {
		return err
	}
	if len(out.Paths[way]) == 0 {
		got, err := contentOf(ctx, file)
		if err != nil {
			return err
		}
		if got.digest != digest {
			return fmt.Errorf("what was exported has the digest %s, what was imported %s", got.digest, digest)
		}
	}
	collation = min(collation, exporting) // as above
	out.Sealed, out.Wire = pulled.Bytes, pulled.Wire
	p.Transmission, p.Opening, p.Collation = ms(transmission), ms(exporting-collation), ms(collation)
	out.Paths[way] = append(out.Paths[way], p)
	return errors.Join(os.Remove(file), sink.remove(ctx, in.name))
}

// collate makes a file of one that is not sealed, as an export does, and times that.
func collate(ctx context.Context, from, to string) (time.Duration, error) {
	began := time.Now()
	r, err := openRaw(from)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	w, err := format.CreateRaw(to, r.size, false)
	if err != nil {
		return 0, err
	}
	if _, err = convert.Export(ctx, r, w, nil); err == nil {
		err = w.Commit()
	}
	took := time.Since(began)
	return took, errors.Join(err, w.Abort(), os.Remove(to))
}

// asCommands measures the path over the loopback as commands that are typed: each is a process of its own.
func (e *evaluation) asCommands(ctx context.Context, in *input, out *page.Image) error {
	sink, file := e.sinks[page.Loopback], e.path("out.raw")
	began := time.Now()
	for _, c := range []struct {
		at   *host
		args []string
	}{
		{e.source, []string{"import", "--format", "raw", in.source, in.name}},
		{sink, []string{"pull", "source:" + in.name}},
		{sink, []string{"export", in.name, file}},
	} {
		if _, err := e.command(ctx, c.at, c.args...); err != nil {
			return err
		}
	}
	out.Commands = ms(time.Since(began))
	return errors.Join(os.Remove(file), sink.remove(ctx, in.name), e.source.remove(ctx, in.name))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
