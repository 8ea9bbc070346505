/* SPDX-License-Identifier: Apache-2.0
 *
 * What a baton-1.0 machine tells ACPI about itself, apart from what depends on its configuration:
 * acpi.c puts the processors, the place of the 64-bit PCI window (\_SB.M64B, \_SB.M64L) and the
 * routes of INTx (\_SB.PCI0._PRT) into an SSDT. Addresses are those of memory/layout.h; test_boot
 * compares them.
 */
DefinitionBlock ("", "DSDT", 2, "BATON ", "BATON10 ", 1)
{
    External (\_SB.M64B, IntObj) /* base of the 64-bit window */
    External (\_SB.M64L, IntObj) /* its length, 0 when there is none */

    Name (\_S5, Package () { 5, 5, 0, 0 })

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_SEG, 0)
            Name (_BBN, 0)

            Name (FIXR, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,
                    0, 0, 0, 0, 1)
                IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0, 0xC000, 0xDFFF, 0, 0x2000)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,
                    ReadWrite, 0, 0xC0000000, 0xDFFFFFFF, 0, 0x20000000)
            })
            Name (WIDR, ResourceTemplate ()
            {
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable,
                    ReadWrite, 0, 0x100000000, 0x1FFFFFFFF, 0, 0x100000000, , , W64)
            })

            Method (_CRS, 0, Serialized)
            {
                If (\_SB.M64L == 0)
                {
                    Return (FIXR)
                }
                CreateQWordField (WIDR, ^W64._MIN, WMIN)
                CreateQWordField (WIDR, ^W64._MAX, WMAX)
                CreateQWordField (WIDR, ^W64._LEN, WLEN)
                WMIN = \_SB.M64B
                WLEN = \_SB.M64L
                WMAX = \_SB.M64B + \_SB.M64L - 1
                Return (ConcatenateResTemplate (FIXR, WIDR))
            }

            /* PCI Firmware 3.3, 4.5.1: the guest gets every native control that it knows how to
             * ask for: hot-plug, SHPC, PME, AER, the capability structure, LTR. */
            Method (_OSC, 4, Serialized)
            {
                CreateDWordField (Arg3, 0, CAP1)
                If (Arg0 == ToUUID ("33DB4D5B-1FF7-401C-9657-7441C03DD766"))
                {
                    CreateDWordField (Arg3, 8, CAP3)
                    Local0 = CAP3 & 0x3F
                    If (Arg1 != 1)
                    {
                        CAP1 |= 0x08 /* unknown revision */
                    }
                    If (CAP3 != Local0)
                    {
                        CAP1 |= 0x10 /* some bits were masked */
                    }
                    CAP3 = Local0
                }
                Else
                {
                    CAP1 |= 0x04 /* unknown UUID */
                }
                Return (Arg3)
            }
        }

        /* Linux uses ECAM only when the memory is reserved by such a device. */
        Device (MBRD)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xE0000000, 0x00100000) /* ECAM */
                IO (Decode16, 0x0600, 0x0600, 1, 0x0C)            /* PM1 and PM timer */
            })
        }

        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 1)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03F8, 0x03F8, 1, 8)
                IRQNoFlags () { 4 }
            })
        }
    }
}
