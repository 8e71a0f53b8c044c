# From 32-bit protected mode without paging, as both boot protocols hand over, to 64-bit Rust:
#
#   PVH          https://xenbits.xen.org/docs/unstable/misc/pvh.html
#   Multiboot2   https://www.gnu.org/software/grub/manual/multiboot2/multiboot.html

# ELF note, owner "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY): what makes `qemu -kernel` start us.
.section .note.Xen, "a", @note
    .balign 4
    .long 4                             # length of the owner's name
    .long 8                             # length of the descriptor: QEMU reads eight bytes of an ELF64
    .long 18
    .asciz "Xen"
    .quad pvh_entry

# Multiboot2 header: what makes GRUB start us.
.section .multiboot2, "a"
    .balign 8
multiboot2_header:
    .long 0xe85250d6                    # magic
    .long 0                             # architecture: i386, 32-bit protected mode
    .long multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + multiboot2_header_end - multiboot2_header)
    .word 1, 0                          # information request: a memory map, or do not start us
    .long 12
    .long 6
    .balign 8
    .word 3, 0                          # entry address, other than the ELF header's
    .long 12
    .long multiboot2_entry
    .balign 8
    .word 6, 0                          # modules begin at a page
    .long 8
    .word 0, 0                          # end
    .long 8
multiboot2_header_end:

.section .text.entry, "ax"
.code32

multiboot2_entry:
    mov edi, eax                        # the first argument of `start`: the protocol's magic
    jmp entry

.global pvh_entry
pvh_entry:
    mov edi, 0x336ec578                 # hvm_start_info's magic; PVH promises nothing of eax

entry:
    mov esi, ebx                        # the second argument: the address of the information
    cli
    cld
    mov esp, offset boot_stack_end

    # CPUID there? Then bit 21 (ID) of EFLAGS can be changed.
    pushfd
    pop eax
    mov ecx, eax
    xor eax, 1 << 21
    push eax
    popfd
    pushfd
    pop eax
    cmp eax, ecx
    je no_long_mode

    # Long mode there? CPUID 0x80000001, EDX bit 29. (CPUID overwrites ebx.)
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb no_long_mode
    mov eax, 0x80000001
    cpuid
    test edx, 1 << 29
    jz no_long_mode

    # Map the first 4 GiB to itself: one table of level 4, one of level 3, four of level 2 with
    # pages of 2 MiB. 3 = present + writable, 0x83 = the same and a large page.
    mov dword ptr [identity_level_4], offset identity_level_3 + 3
    mov dword ptr [identity_level_3], offset identity_level_2 + 0x0003
    mov dword ptr [identity_level_3 + 8], offset identity_level_2 + 0x1003
    mov dword ptr [identity_level_3 + 16], offset identity_level_2 + 0x2003
    mov dword ptr [identity_level_3 + 24], offset identity_level_2 + 0x3003
    mov eax, 0x83
    xor ecx, ecx
2:
    mov [identity_level_2 + ecx * 8], eax
    mov dword ptr [identity_level_2 + ecx * 8 + 4], 0
    add eax, 0x200000
    inc ecx
    cmp ecx, 4 * 512
    jne 2b

    mov eax, 1 << 5                     # PAE, and nothing that firmware may have left
    mov cr4, eax
    mov eax, offset identity_level_4
    mov cr3, eax
    mov ecx, 0xc0000080                 # EFER
    rdmsr
    or eax, 1 << 8                      # LME
    wrmsr
    mov eax, cr0
    or eax, (1 << 31) | 1               # PG, PE
    mov cr0, eax

    lgdt [gdt_pointer]
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    # A far jump to the 64-bit code segment, by far return: all assemblers agree on its syntax.
    mov eax, 0x08
    push eax
    mov eax, offset long_mode
    push eax
    retf

# Report on COM1, then exit by isa-debug-exit, or stop for ever where that is absent.
no_long_mode:
    mov dx, 0x3f8 + 3
    mov al, 0x80                        # divisor latch: 115200 baud
    out dx, al
    mov dx, 0x3f8
    mov al, 1
    out dx, al
    inc edx
    xor eax, eax
    out dx, al
    mov dx, 0x3f8 + 3
    mov al, 3                           # eight bits, no parity
    out dx, al
    mov esi, offset no_long_mode_text
3:
    lodsb
    test al, al
    jz 5f
    mov bl, al
    mov ecx, 100000                     # bounded wait for an empty transmitter
    mov dx, 0x3f8 + 5
4:
    in al, dx
    test al, 0x20
    loopz 4b
    mov al, bl
    mov dx, 0x3f8
    out dx, al
    jmp 3b
5:
    mov eax, 0x10
    mov dx, 0xf4
    out dx, eax
6:
    hlt
    jmp 6b

.code64
long_mode:
    mov esp, offset boot_stack_end      # clears the upper half, which is undefined after the switch
    mov edi, edi
    mov esi, esi
    xor ebp, ebp
    call start
    ud2

.section .rodata.entry, "a"
no_long_mode_text:
    .asciz "boot: error: this CPU has no 64-bit mode (long mode); try -cpu qemu64 or max\r\n"

# What outlives the loader: the kernel's page tables map this page, and this page only, at its own
# address, so that the code that changes page tables goes on running, and the GDT stays valid until
# the kernel loads its own. Read-only there: the "accessed" bits are already set.
.section .handover, "ax"

# fn handover(boot_info, stack_end, entry_point, level_4_table) -> !
.global handover
handover:
    mov cr3, rcx
    mov rsp, rsi
    xor ebp, ebp
    push rbp                            # a return address of 0 ends the backtrace
    jmp rdx

    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 0x08: 64-bit code
    .quad 0x00cf93000000ffff            # 0x10: data
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt

# One stub per exception, 16 bytes apart. The CPU pushes an error code for some; push 0 for the rest.
.section .text.exceptions, "ax"
    .balign 16
.global exception_stubs
exception_stubs:
.set vector, 0
.rept 32
    .balign 16
    .if (0x60227d00 >> vector) & 1 == 0
        push 0
    .endif
    .byte 0x6a, vector                  # push vector: the assembler would read memory at `vector`
    jmp exception_common
    .set vector, vector + 1
.endr

exception_common:
    pop rdi                             # vector
    pop rsi                             # error code
    mov rdx, [rsp]                      # rip
    mov rcx, cr2
    and rsp, -16
    call exception

.section .bss.entry, "aw", @nobits
    .balign 4096
.global identity_level_4
identity_level_4: .skip 4096
identity_level_3: .skip 4096
identity_level_2: .skip 4 * 4096
# Memory maps live on it, a few copies at a time: about 100 KiB in the worst case.
boot_stack:       .skip 256 * 1024
boot_stack_end:
