// Package handover knows which handles write which image, so that the lease of an image
// moves to another host only while none does.
//
//	          FLUSH of the last writing handle            the destination asks
//	armed ------------------------------------> offered ------------------------> given
//	  ^                                            |
//	  `------- a write, or an open for writing ----'
//
// Images that are armed together are offered together, and given together to who asks for one of them.
// An image that is not armed is given when nobody has it open for writing.
package handover
