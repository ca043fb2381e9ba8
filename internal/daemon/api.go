package daemon

import (
	"time"

	"github.com/sealdisk/sealdisk/internal/picture"
)

// The operations of the API. Each is POST /v1/NAME: one line of JSON, the
// request, then for "import" possibly the image itself. The answer is lines of
// JSON, each an [Event]; the last has the result or the error.
const (
	OpStatus     = "status"
	OpImport     = "import"
	OpExport     = "export"
	OpList       = "ls"
	OpNames      = "names"
	OpInfo       = "info"
	OpRemove     = "rm"
	OpRename     = "rename"
	OpResize     = "resize"
	OpMount      = "mount"
	OpUnmount    = "umount"
	OpWait       = "wait" // for the end of a mount
	OpSnapshot   = "snapshot"
	OpClone      = "clone"
	OpRecipients = "recipients"
	OpVerify     = "verify"
	OpCollect    = "gc"
	OpStats      = "stats"
	OpPeers      = "peers"
	OpPeerAdd    = "peer-add"
	OpPeerRemove = "peer-rm"
	OpPeerAllow  = "peer-allow"
	OpPull       = "pull"
	OpPush       = "push"
	OpFill       = "fill"
	OpBandwidth  = "bandwidth"
	OpDeps       = "deps"
	OpMigrate    = "migrate"
	OpLease      = "lease"
	OpTakeLease  = "lease-take"
)

// Event is one line of an answer. Exactly one of its fields is set.
type Event struct {
	Progress *ProgressEvent `json:"progress,omitempty"`
	Note     string         `json:"note,omitempty"`
	Stage    *StageEvent    `json:"stage,omitempty"`
	Fault    *FaultEvent    `json:"fault,omitempty"`
	Result   any            `json:"result,omitempty"`
	Error    *Error         `json:"error,omitempty"`
}

// ProgressEvent counts bytes, or objects; Total is 0 if unknown.
type ProgressEvent struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

// StageEvent is where a migration stands: at the beginning of a phase, or after a round of it.
// Bytes per second, and ns.
type StageEvent struct {
	Phase    string `json:"phase"`
	Round    int    `json:"round,omitempty"`
	Bytes    int64  `json:"bytes,omitempty"`
	Duration int64  `json:"duration,omitempty"`
	Rate     int64  `json:"rate,omitempty"`
	Dirty    int64  `json:"dirty_rate,omitempty"`         // that the guest writes
	Downtime int64  `json:"estimated_downtime,omitempty"` // were the handover now
}

// FaultEvent is one thing that is wrong in a store.
type FaultEvent struct {
	Image    string `json:"image"` // name, or id if it has none
	Snapshot string `json:"snapshot,omitempty"`
	Offset   int64  `json:"offset"`
	Length   int64  `json:"length"` // of the bytes of the disk; 0: no place
	Object   string `json:"object,omitempty"`
	Cause    string `json:"cause"`
}

// Nothing is the request or the result of an operation that needs none.
type Nothing struct{}

// Status describes a daemon.
type Status struct {
	PID        int      `json:"pid"`
	Command    string   `json:"command"`
	Persistent bool     `json:"persistent"`
	Ending     bool     `json:"ending"` // it makes no mount any more
	Mounts     []string `json:"mounts"`
}

// ImportRequest: without Path the image follows the request.
type ImportRequest struct {
	Path         string   `json:"path,omitempty"` // absolute
	Name         string   `json:"name"`
	Recipients   []string `json:"recipients,omitempty"` // beside this host's own
	AllowClassic bool     `json:"allow_classic,omitempty"`
	Link         string   `json:"link,omitempty"`
	BlockSize    int64    `json:"block_size,omitempty"`
	Compress     string   `json:"compress,omitempty"`
	Format       string   `json:"format,omitempty"`
	Base         string   `json:"base,omitempty"` // NAME or NAME@SNAP
	Update       bool     `json:"update,omitempty"`
}

// Segments is the paper's segmentation table.
type Segments struct {
	Planned          int64   `json:"planned"`
	Merged           int64   `json:"merged"`
	Count            int64   `json:"count"`
	ReductionPercent float64 `json:"reduction_percent"`
}

// Imported is what an import made.
type Imported struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"`
	Size     int64     `json:"size"`
	Read     int64     `json:"read"`               // bytes read from the source
	Changed  int64     `json:"changed,omitempty"`  // bytes of sectors that differed from the base or the image before
	Segments *Segments `json:"segments,omitempty"` // of a whole image
	Bases    []string  `json:"bases,omitempty"`    // images made of the backing chain
}

// ExportRequest writes an image to a file or a device.
type ExportRequest struct {
	Name   string `json:"name"` // NAME or NAME@SNAP
	Path   string `json:"path"` // absolute
	Format string `json:"format,omitempty"`
	Force  bool   `json:"force,omitempty"`
}

// Exported is what an export wrote.
type Exported struct {
	Path string `json:"path"`
	Size int64  `json:"size"`
	Data int64  `json:"data"` // bytes that are no hole
}

// Listed is one image of a store.
type Listed struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	Size      int64     `json:"size"`
	Allocated int64     `json:"allocated"`
	Time      time.Time `json:"time"`
	Snapshots []string  `json:"snapshots"`
	InUse     bool      `json:"in_use"`
	NoKeys    bool      `json:"no_keys"`         // a replica: sizes and snapshots are not known
	Error     string    `json:"error,omitempty"` // why the rest is not known
}

// NameRequest names an image, or a snapshot where that makes sense.
type NameRequest struct {
	Name  string `json:"name"`
	Force bool   `json:"force,omitempty"`
}

// NewNameRequest names an image and what is to be made of it.
type NewNameRequest struct {
	Name string `json:"name"`
	New  string `json:"new"`
}

// ResizeRequest grows a disk.
type ResizeRequest struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes
}

// Info describes an image or a snapshot.
type Info struct {
	Name        string         `json:"name"`
	ID          string         `json:"id"`
	Size        int64          `json:"size"`
	BlockSize   int64          `json:"block_size"`
	Allocated   int64          `json:"allocated"` // bytes of sectors that hold data
	Stored      int64          `json:"stored"`    // sealed bytes
	Uncommitted int64          `json:"uncommitted"`
	Objects     int64          `json:"objects"`
	Compression string         `json:"compression"`
	Segments    Segments       `json:"segments"`
	Commit      CommitInfo     `json:"commit"`
	Epochs      int            `json:"epochs"`
	Recipients  []string       `json:"recipients"`
	Weakest     string         `json:"weakest_recipient"`
	Snapshots   []SnapshotInfo `json:"snapshots"`
	Parent      *ParentInfo    `json:"parent"`
	Kind        string         `json:"kind,omitempty"`
	InUse       bool           `json:"in_use"`
	NoKeys      bool           `json:"no_keys"`           // a replica: of what is sealed nothing is known
	Holder      string         `json:"holder"`            // fingerprint of the host that may write it
	HolderName  string         `json:"holder_name"`       // "this host", a peer's name, or empty
	Missing     *MissingInfo   `json:"missing,omitempty"` // of an image that is not whole here
	Origin      string         `json:"origin,omitempty"`  // name or fingerprint of the peer that it came from first
}

// CommitInfo places a commit in its image's history.
type CommitInfo struct {
	ID   string    `json:"id"`
	Era  uint64    `json:"era"`
	Term uint64    `json:"term"`
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
}

// SnapshotInfo is one snapshot.
type SnapshotInfo struct {
	Name   string    `json:"name"`
	Time   time.Time `json:"time"`
	Commit string    `json:"commit"`
}

// ParentInfo says what a clone or a dependent image was made from.
type ParentInfo struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"` // if the store still has it
	Commit string `json:"commit"`
}

// MountRequest shows images in a folder.
type MountRequest struct {
	Dir        string   `json:"dir"` // absolute
	Names      []string `json:"names,omitempty"`
	ReadOnly   bool     `json:"read_only,omitempty"`
	AllowOther bool     `json:"allow_other,omitempty"`
	UID        int      `json:"uid"` // −1: whoever mounts
	GID        int      `json:"gid"`
}

// UnmountRequest ends a mount; Force also while files of it are open.
type UnmountRequest struct {
	Dir   string `json:"dir"`
	Force bool   `json:"force,omitempty"`
}

// RecipientsRequest changes who can open an image. Without Add and Remove it
// only tells.
type RecipientsRequest struct {
	Name         string   `json:"name"`
	Add          []string `json:"add,omitempty"`
	Remove       []string `json:"remove,omitempty"` // recipients or their fingerprints
	AllowClassic bool     `json:"allow_classic,omitempty"`
}

// Recipient is one who can open an image.
type Recipient struct {
	Recipient   string `json:"recipient"`
	Fingerprint string `json:"fingerprint"`
	Class       string `json:"class"`
	ThisHost    bool   `json:"this_host"`
}

// VerifyRequest checks one image, or all.
type VerifyRequest struct {
	Name   string `json:"name,omitempty"`
	NoKeys bool   `json:"no_keys,omitempty"`
}

// Verified says how a verification went.
type Verified struct {
	Images []string `json:"images"`
	Faults int64    `json:"faults"`
}

// Collected is what a collection freed.
type Collected struct {
	Objects  int64 `json:"objects"`  // swept
	Bytes    int64 `json:"bytes"`    // of the objects swept
	Orphans  int64 `json:"orphans"`  // unfinished images that were dropped
	Freed    int64 `json:"freed"`    // bytes given back to the file system
	FileSize int64 `json:"files"`    // bytes of the store's files now
	Live     int64 `json:"live"`     // bytes of them that are in use
	Commits  int64 `json:"commits"`  // commits removed
	Absent   int64 `json:"absent"`   // objects of incomplete images that are elsewhere
	Duration int64 `json:"duration"` // nanoseconds
}

// Stats describes a store.
type Stats struct {
	Store     string   `json:"store"`
	ID        string   `json:"id"`
	Images    int      `json:"images"`
	Objects   int64    `json:"objects"`
	Live      int64    `json:"live"`
	Dead      int64    `json:"dead"` // bytes of removed objects that are still in the files
	Files     int64    `json:"files"`
	Available int64    `json:"available"` // bytes that may still be stored
	Total     int64    `json:"total"`     // bytes of the file system
	Mounts    []string `json:"mounts"`
	PID       int      `json:"pid"`
}

// Peers lists whom this host knows.
type Peers struct {
	Fingerprint string `json:"fingerprint"` // of this host
	Peers       []Peer `json:"peers"`
}

// Peer is another host.
type Peer struct {
	Name        string            `json:"name"`
	Address     string            `json:"address,omitempty"`
	Fingerprint string            `json:"fingerprint"`
	Roles       map[string]string `json:"roles,omitempty"` // by name or id of an image, or "*"
	Connections int               `json:"connections,omitempty"`
	Rate        int64             `json:"rate,omitempty"`   // bytes per second
	Stored      int64             `json:"stored,omitempty"` // bytes
}

// PeerAllowRequest gives a peer a role: for some images, or for all others.
type PeerAllowRequest struct {
	Name   string   `json:"name"`
	Role   string   `json:"role"`
	Images []string `json:"images,omitempty"`
	// Quotas that are not nil replace those before; 0 is the default.
	Connections *int   `json:"connections,omitempty"`
	Rate        *int64 `json:"rate,omitempty"`
	Stored      *int64 `json:"stored,omitempty"`
}

// PullRequest brings an image from peers. The first one tells what there is.
type PullRequest struct {
	Peers      []string `json:"peers"`
	Remote     string   `json:"remote"`             // name or id there
	Snapshot   string   `json:"snapshot,omitempty"` // bring it alone, as an image of this host's own
	Name       string   `json:"name"`               // here
	ID         string   `json:"id,omitempty"`
	NoKeys     bool     `json:"no_keys,omitempty"`
	Follow     bool     `json:"follow,omitempty"`
	Lazy       bool     `json:"lazy,omitempty"` // return when it can be used
	NoPrefetch bool     `json:"no_prefetch,omitempty"`
	Rollback   uint64   `json:"rollback,omitempty"`  // sequence of an older state that is accepted
	Bandwidth  int64    `json:"bandwidth,omitempty"` // bytes per second
}

// Pulled is what a pull brought.
type Pulled struct {
	Name      string `json:"name"`
	ID        string `json:"id"`
	Era       uint64 `json:"era"`
	Term      uint64 `json:"term"`
	Seq       uint64 `json:"seq"`
	Unchanged bool   `json:"unchanged"`
	NoKeys    bool   `json:"no_keys"`
	Objects   int64  `json:"objects"` // that came
	Bytes     int64  `json:"bytes"`   // sealed, of those
	Wire      int64  `json:"wire"`    // bytes that came over the network
	Duration  int64  `json:"duration"`
}

// MissingInfo says how far an image has come that is not whole here.
type MissingInfo struct {
	Came    int64    `json:"came"`  // bytes of what was missing when the fill began
	Total   int64    `json:"total"` // 0: not known yet
	Sources []string `json:"sources"`
	Waited  int64    `json:"waited"` // nanoseconds that readers waited for data, in all
}

// FillRequest brings the rest of an image that is not whole here.
type FillRequest struct {
	Name string `json:"name"`
	Wait bool   `json:"wait,omitempty"`
}

// BandwidthRequest bounds the pulls and pushes of an image that run.
type BandwidthRequest struct {
	Name string `json:"name"`
	Rate int64  `json:"rate"` // bytes per second; 0: no bound
}

// Bounded says how many were.
type Bounded struct {
	Running int `json:"running"`
}

// Deps is the dependency map of an image.
type Deps struct {
	Name    string          `json:"name"`
	Size    int64           `json:"size"`
	Parent  *ParentInfo     `json:"parent"`
	Startup []picture.Range `json:"startup"` // what a guest needs first, in order
}

// PushRequest brings an image to a peer.
type PushRequest struct {
	Name      string `json:"name"`
	Snapshot  string `json:"snapshot,omitempty"` // the only state to bring, as an image of its own
	As        string `json:"as,omitempty"`       // the name of that image
	Peer      string `json:"peer"`
	Follow    bool   `json:"follow,omitempty"`
	Bandwidth int64  `json:"bandwidth,omitempty"` // bytes per second
}

// Pushed is what a push sent.
type Pushed struct {
	Name     string `json:"name"`
	Wire     int64  `json:"wire"`
	Duration int64  `json:"duration"`
}

// MigrateRequest hands images over to a peer, with the guest that uses them if QMP is set.
type MigrateRequest struct {
	Names       []string `json:"names"`
	Peer        string   `json:"peer"`
	QMP         string   `json:"qmp,omitempty"`      // path of the guest's monitor
	PeerQMP     string   `json:"peer_qmp,omitempty"` // name of the monitor at the peer
	Lazy        bool     `json:"lazy,omitempty"`
	PreCopy     bool     `json:"pre_copy,omitempty"`
	DryRun      bool     `json:"dry_run,omitempty"`
	Keep        bool     `json:"keep,omitempty"`         // this host's copy
	Bandwidth   int64    `json:"bandwidth,omitempty"`    // bytes per second
	MaxDowntime int64    `json:"max_downtime,omitempty"` // ns; what QEMU aims at
	Timeout     int64    `json:"timeout,omitempty"`      // ns that a close waits for the peer
}

// Migrated says how a migration went. Times are ns.
type Migrated struct {
	Names    []string        `json:"names"`
	Peer     string          `json:"peer"`
	Phases   []MigratedPhase `json:"phases"`
	Rounds   []MigratedRound `json:"rounds"`
	Freed    []string        `json:"freed"`    // of the names: this host has no copy any more
	Wire     int64           `json:"wire"`     // bytes, without the guest's memory
	Armed    int64           `json:"armed"`    // from arming to the handover
	Offer    int64           `json:"offer"`    // that the last close waited
	Fill     int64           `json:"fill"`     // from the handover until all was there
	Duration int64           `json:"duration"` // in all
	Guest    *MigratedGuest  `json:"guest,omitempty"`
}

// MigratedPhase is how long a phase took.
type MigratedPhase struct {
	Phase    string `json:"phase"`
	Duration int64  `json:"duration"`
}

// MigratedRound is one round of copying.
type MigratedRound struct {
	Bytes    int64 `json:"bytes"`
	Duration int64 `json:"duration"`
	Sealing  int64 `json:"sealing"` // of that, at this host, segmentation included
}

// MigratedGuest is what QEMU says.
type MigratedGuest struct {
	Downtime int64 `json:"downtime"` // that the guest stood still
	Paused   int64 `json:"paused"`   // of that, that the disks took
	Duration int64 `json:"duration"`
	Memory   int64 `json:"memory"` // bytes
}

// Leases is who has written an image, oldest first.
type Leases struct {
	Name  string      `json:"name"`
	Terms []LeaseTerm `json:"terms"`
}

// LeaseTerm is one record of the chain.
type LeaseTerm struct {
	Era        uint64 `json:"era"`
	Term       uint64 `json:"term"`
	Holder     string `json:"holder"` // fingerprint
	HolderName string `json:"holder_name,omitempty"`
	Last       string `json:"last_commit,omitempty"` // of the term before
}

// TakeLeaseRequest takes the lease of an image by force.
type TakeLeaseRequest struct {
	Name     string `json:"name"`
	Identity string `json:"identity,omitempty"` // path of a file with an admin's identity
}
