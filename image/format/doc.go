// Package format opens disk images of the formats that virtual machines use
// and shows each as one raw, random-access, sparse-aware run of bytes, which
// is what an import reads. It also writes the two formats that an export
// offers, raw and qcow2.
//
// Its words:
//
//   - A Source is an opened image, read as the guest would see it.
//   - A layer is one image file of a backing chain. The chain runs from its
//     base, which depends on nothing, to its top, the file that was asked for.
//   - What the top layer holds is its own: Source.Own lists it. Everything
//     else reads as the backing file does. An import of a dependent image as
//     a clone of its imported base reads only what is the top layer's own.
//
// Who reads what: raw images and block devices are read directly; qcow2
// through go-qcow2reader, one layer at a time, with the layers put together
// here; vhd (fixed, dynamic and differencing) by the reader in this package,
// because QEMU reads no differencing vhd; vmdk, vhdx, vdi, and those qcow2
// images that go-qcow2reader does not read fully, through
// qemu-storage-daemon, which this package starts and stops.
//
// Invariants:
//
//   - What is read is the image's content, or an error. A file that ends
//     before the place where its image needs data is an error, never zeros.
//   - An Extent is called zero only if it certainly reads as zeros.
//   - Images are hostile: a length is checked before memory is taken by it,
//     chains are bounded and may not loop, external tools' output is bounded.
//   - An export appears under its name only when it is complete and durable.
//
// An image names its backing file itself, and the formats put no bounds on
// that name. Whoever opens an image that an adversary may have written should
// check Chain first, and should give Options.Format for raw images, since a
// guest can write another format's header into its own raw disk.
package format
