package page

import (
	"fmt"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// method says where each phase begins and ends.
func (r *Results) method(w *writer) {
	w.text("## What is measured")
	w.text("A *path*: an image that is a file or a device at one host becomes sealed there, goes to another host and becomes a file there. Three requests to daemons that run already, over the sockets that the " +
		"commands use: `import` at the source, `pull` and `export` at the destination. The total is the sum of the three, measured from outside; all that is made is durable when a request returns (its fsync is part of it). " +
		"The source is in the page cache. The network is the loopback device of a namespace, or a link between two namespaces that `tc` bounds to 1 Gbit/s, both with TLS.")
	w.text("The paper has five phases that follow each other. Here they overlap inside a request, so two of them are measured once more, alone, just beside the request, and taken from it:")
	w.text("- *Segmentation*: the image is read and planned as an import does, and nothing else (`convert.Plan`).\n" +
		"- *Sealing*: the import, less that; so it is what sealing adds to the time of reading, which it overlaps. Keys are made and sealed to the source and the destinations (`--recipient`), as the paper seals its header in this phase; frames are compressed (zstd, as by default) and sealed, objects hashed and stored, the map and the commit signed.\n" +
		"- *Transmission*: the pull. The hosts authenticate, the destination checks leases, commit and map, and each object is sent, checked and stored.\n" +
		"- *Opening*: the export, less collation, likewise. Keys are opened and compared with the master key, objects are read, opened and decompressed.\n" +
		"- *Collation* (de-segmentation): what an export does with a disk that is not sealed: its regions are put together and written to a new file, which is made durable.")
	w.text("So the phases of a round add up to its total. A request that is not longer than what is taken from it leaves 0: the rest is hidden behind it. The paper gives no time for keys and for storing; " +
		"here both are within sealing and transmission. The guest is not moved: [testing.md](testing.md) says which tests do that.")
}

// speeds says where the time goes.
func (r *Results) speeds(w *writer) {
	s := r.first()
	if s == nil || len(s.Images) == 0 {
		return
	}
	w.text("## Where the time goes")
	var rows [][]string
	for i, name := range PhaseNames {
		at := func(w Way) func(Image) float64 { return func(im Image) float64 { return im.Phase(w).List()[i] } }
		rows = append(rows, []string{name, measure.Number(s.mean(func(im Image) float64 { return im.Paper.List()[i] })), measure.Number(s.mean(at(Loopback))), measure.Number(s.mean(at(Gigabit))), reasons[i]})
	}
	fmt.Fprintf(w, "| phase, mean of the images in %s | paper, ms | loopback, ms | 1 Gbit/s, ms | what bounds it |\n|---|---:|---:|---:|---|\n", s.Unit)
	for _, row := range rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", row[0], row[1], row[2], row[3], row[4])
	}
	w.WriteString("\n")
}

// reasons says for each phase what bounds it with images of some megabytes.
var reasons = [len(PhaseNames)]string{
	"reading: a linked image is read whole, holes and all",
	"zstd, and 15 waits for the device (15–38): objects, lease, commit and name are made durable one after the other, in the order that a crash needs. Traced with strace: half of them take at most 0.13 ms, all of an import together 10 of its 99 ms",
	"21 waits for the device (17–28): map, segments, leases, head and name, each durable before the next. Traced with strace: half of them take at most 0.15 ms, all of a pull on loopback together 15 of its 62 ms; the rest, not taken apart, is the handshake, round trips, checks and stores. Over 1 Gbit/s the link as well",
	"zstd, and the memory that buffers of whole regions take from the kernel anew",
	"the fsync of the new file",
}

// lazy says how soon an image can be used.
func (r *Results) lazy(w *writer) {
	w.text("## Lazy beside whole")
	w.text("Over 1 Gbit/s, from the request for an image that the destination does not have, until a program there has read the first block (4 KiB) from the mount, and until it has read the boot list: " +
		"stretches of up to 2 MiB from all over the data, in no order, as files are loaded, a tenth of it in all, which were read once at the source and recorded there as the start-up list (`sealdisk deps`). *Whole* is `pull`, *lazy* `pull --lazy`, which brings that list first and the rest meanwhile. Milliseconds, medians.")
	for _, s := range r.Sets {
		var rows [][]string
		row := func(name, boot string, f func(func(Image) float64) float64) []string {
			of := func(list func(Image) []Start, at func(Start) float64) float64 {
				return f(func(im Image) float64 { return medianOf(list(im), at) })
			}
			eager, lazy := func(im Image) []Start { return im.Eager }, func(im Image) []Start { return im.Lazy }
			first, all, whole := func(t Start) float64 { return t.First }, func(t Start) float64 { return t.Boot }, func(t Start) float64 { return t.Whole }
			return []string{name, boot, measure.Number(of(eager, first)), measure.Number(of(lazy, first)), measure.Number(of(eager, all)), measure.Number(of(lazy, all)), measure.Number(of(lazy, whole))}
		}
		for _, im := range s.Images {
			one := func(f func(Image) float64) float64 { return f(im) }
			rows = append(rows, row(im.name(s), fmt.Sprintf("%d reads, %s MB", im.Boot.Reads, megabytes(im.Boot.Bytes)), one))
		}
		rows = append(rows, row("mean", "", s.mean))
		w.table([]string{"image", "boot list", "first block, whole", "first block, lazy", "boot list, whole", "boot list, lazy", "all of it, lazy"}, rows)
		w.plot(s.starts())
	}
}

// sla is the paper's last table.
func (r *Results) sla(w *writer) {
	s := r.first()
	if s == nil {
		return
	}
	loopback, gigabit := Minutes(s.MeanTotal(Loopback)), Minutes(s.MeanTotal(Gigabit))
	w.text("## Service levels")
	w.text("The increase of the time in which a pair of load-balancing policies selects a machine, if sealing and moving it comes on top: the time of a path ÷ the selection time × 100. "+
		"Here the mean total of the images in %s, %.7f minutes on loopback and %.7f over 1 Gbit/s, not rounded.", s.Unit, loopback, gigabit)
	var rows [][]string
	line := func(name, selection string, f func(minutes float64) float64) []string {
		return []string{name, selection, fmt.Sprintf("%.4f", f(PaperMinutes)), fmt.Sprintf("%.4f", f(Minutes(PaperMean))), fmt.Sprintf("%.5f", f(loopback)), fmt.Sprintf("%.5f", f(gigabit))}
	}
	for _, p := range Policies {
		rows = append(rows, line(p.Name, fmt.Sprintf("%.2f", p.Minutes), p.Increase))
	}
	rows = append(rows, line("**mean**", "", MeanIncrease))
	w.table([]string{"policies", "selection, minutes", "paper, 0.02 minutes, %", fmt.Sprintf("paper, %.1f ms, %%", PaperMean), "loopback, %", "1 Gbit/s, %"}, rows)
	w.plot(slaChart(*s))
	w.text("The paper gives a mean of %.2f %%. Its 0.02 minutes give %.4f %%; its mean total of %.1f ms, which is %.4f minutes, gives %.4f %%: so it rounded what it shows, not what it computed with.",
		PaperIncrease, MeanIncrease(PaperMinutes), PaperMean, Minutes(PaperMean), MeanIncrease(Minutes(PaperMean)))
	w.text("*What this means, and what not.* The selection times are the paper's, out of a simulation of other machines, and are not measured here. The two times that are put in their relation were measured on other hardware, a decade apart; " +
		"a large part of the factor between them is the processors' (AES and SHA in hardware, two cores) and the device's, and it cannot be told from the part that is the design's. The paper's path seals a header with RSA and the data with its parent keys, and its phases have none for making what arrives durable; " +
		"this one has authentication, signatures and fsyncs in its times, and is compared as it is. The increase is of one machine of some megabytes: it grows with the image, as the table of the images in GB shows, but for a lazy pull, after which the machine starts as soon as its boot list is there. " +
		"What the table does show: next to the selection of a machine, sealing and moving an image of that size is no cost that a service level would see.")
}
