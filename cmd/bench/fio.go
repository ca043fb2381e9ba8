package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
	"github.com/sealdisk/sealdisk/internal/measure"
)

// A load is one run of fio on one file, O_DIRECT.
type load struct {
	rw, bs   string
	depth    int           // requests in flight for each job, by libaio
	jobs     int           // 0 is one
	size     int64         // of the file, from its beginning
	runtime  time.Duration // 0: until size is done
	fsync    int           // writes between two fsyncs
	endFsync bool
	readPart int  // percent of reads of rw=randrw
	rates    bool // keep the rate of each second
}

// An outcome is what fio measured.
type outcome struct {
	Read, Write direction
	Rates       []report.Point // requests a second, all kinds
}

// A direction is one half of an outcome; it is zero if the load had none of it.
type direction struct {
	IOPS  float64
	Bytes float64       // a second
	Total int64         // bytes in all
	P99   time.Duration // from submission to completion
}

func (o outcome) iops() float64  { return o.Read.IOPS + o.Write.IOPS }
func (o outcome) bytes() float64 { return o.Read.Bytes + o.Write.Bytes }

func (l load) args(file, logs string) []string {
	engine := "libaio"
	if l.depth == 1 && l.fsync == 1 {
		engine = "psync"
	}
	args := []string{
		"--name=load", "--filename=" + file, "--direct=1", "--ioengine=" + engine, "--output-format=json", "--group_reporting",
		"--rw=" + l.rw, "--bs=" + l.bs, "--iodepth=" + strconv.Itoa(l.depth), "--numjobs=" + strconv.Itoa(max(1, l.jobs)),
		"--size=" + strconv.FormatInt(l.size, 10), "--fallocate=none", "--randrepeat=0", "--refill_buffers", "--invalidate=0",
	}
	if l.runtime > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", l.runtime.Milliseconds()))
	}
	if l.fsync > 0 {
		args = append(args, "--fsync="+strconv.Itoa(l.fsync))
	}
	if l.endFsync {
		args = append(args, "--end_fsync=1")
	}
	if l.readPart > 0 {
		args = append(args, "--rwmixread="+strconv.Itoa(l.readPart))
	}
	if l.rates {
		args = append(args, "--write_iops_log="+logs, "--log_avg_msec=1000")
	}
	return args
}

// fio runs a load on a file.
func (b *bench) fio(ctx context.Context, file string, l load) (outcome, error) {
	logs := b.path("fio")
	out, err := b.command(ctx, "fio", l.args(file, logs)...)
	if err != nil {
		return outcome{}, err
	}
	o, err := parseFio([]byte(out))
	if err != nil || !l.rates {
		return o, err
	}
	names, err := filepath.Glob(logs + "_iops*.log")
	if err != nil {
		return o, err
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return o, err
		}
		o.Rates, err = parseRates(f)
		if err := errors.Join(err, f.Close(), os.Remove(name)); err != nil {
			return o, err
		}
	}
	return o, nil
}

// parseFio reads the JSON of a run of one group. Lines before it are warnings.
func parseFio(text []byte) (outcome, error) {
	type half struct {
		IOPS    float64 `json:"iops"`
		Bytes   float64 `json:"bw_bytes"`
		Total   int64   `json:"io_bytes"`
		Latency struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var result struct {
		Jobs []struct {
			Error int  `json:"error"`
			Read  half `json:"read"`
			Write half `json:"write"`
		} `json:"jobs"`
	}
	_, body, found := strings.Cut(string(text), "{")
	if !found {
		return outcome{}, fmt.Errorf("fio: no JSON in %q", measure.Tail(string(text)))
	}
	if err := json.Unmarshal([]byte("{"+body), &result); err != nil {
		return outcome{}, fmt.Errorf("fio: %w", err)
	}
	if len(result.Jobs) != 1 {
		return outcome{}, fmt.Errorf("fio: %d groups, want 1", len(result.Jobs))
	}
	job := result.Jobs[0]
	if job.Error != 0 {
		return outcome{}, fmt.Errorf("fio: error %d", job.Error)
	}
	give := func(h half) direction {
		return direction{h.IOPS, h.Bytes, h.Total, time.Duration(h.Latency.Percentile["99.000000"])}
	}
	o := outcome{Read: give(job.Read), Write: give(job.Write)}
	if o.Read.Total+o.Write.Total == 0 {
		return outcome{}, errors.New("fio: nothing was read or written")
	}
	return o, nil
}

// parseRates reads an IOPS log: "ms, rate, direction, size, offset…", a line a second and direction.
func parseRates(r io.Reader) (points []report.Point, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Split(lines.Text(), ",")
		if len(f) < 3 {
			return nil, fmt.Errorf("fio: line %q of the log", lines.Text())
		}
		ms, err1 := strconv.ParseFloat(strings.TrimSpace(f[0]), 64)
		v, err2 := strconv.ParseFloat(strings.TrimSpace(f[1]), 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("fio: log: %w", err)
		}
		points = append(points, report.Point{T: ms / 1000, V: v})
	}
	return points, lines.Err()
}

// firstRate is the mean rate up to a time; the log has a point for each second.
func firstRate(points []report.Point, until time.Duration) (float64, bool) {
	sum, n := 0.0, 0
	for _, p := range points {
		if p.T <= until.Seconds()+0.5 {
			sum += p.V
			n++
		}
	}
	if n == 0 {
		return 0, false
	}
	return sum / float64(n), true
}
