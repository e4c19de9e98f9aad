package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"tidemark.dev/tests/clients/cbt/api"
)

// message is what the answers of both calls have in common.
type message interface {
	GetBlockMetadataType() api.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*api.BlockMetadata
}

// list streams the ranges from the service to the printer. The output is complete only if no error is returned: nothing
// but the stream's own end tells that all was sent.
func list(ctx context.Context, at service, token string, r request, out *printer) error {
	secure := credentials.NewTLS(&tls.Config{RootCAs: at.roots, MinVersion: tls.VersionTLS12})
	connection, err := grpc.NewClient(at.address, grpc.WithTransportCredentials(secure))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := api.NewSnapshotMetadataClient(connection)
	if r.baseID == "" {
		stream, err := client.GetMetadataAllocated(ctx, &api.GetMetadataAllocatedRequest{
			SecurityToken: token, Namespace: r.namespace, SnapshotName: r.snapshot,
			StartingOffset: r.offset, MaxResults: int32(r.maxResults),
		})
		if err != nil {
			return fmt.Errorf("GetMetadataAllocated: %w", err)
		}
		return drain("GetMetadataAllocated", stream.Recv, r, out)
	}
	stream, err := client.GetMetadataDelta(ctx, &api.GetMetadataDeltaRequest{
		SecurityToken: token, Namespace: r.namespace, BaseSnapshotId: r.baseID, TargetSnapshotName: r.snapshot,
		StartingOffset: r.offset, MaxResults: int32(r.maxResults),
	})
	if err != nil {
		return fmt.Errorf("GetMetadataDelta: %w", err)
	}
	return drain("GetMetadataDelta", stream.Recv, r, out)
}

func drain[M message](call string, receive func() (M, error), r request, out *printer) error {
	seen := follower{end: r.offset}
	for {
		received, err := receive()
		if errors.Is(err, io.EOF) {
			return out.close()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", call, err)
		}
		if err := seen.follow(received); err != nil {
			return fmt.Errorf("%s broke the protocol: %w", call, err)
		}
		if err := out.print(received); err != nil {
			return err
		}
	}
}

// follower holds a stream to what the protocol promises: whoever serves the ranges need not have checked them.
type follower struct {
	begun    bool
	kind     api.BlockMetadataType
	capacity int64
	ranges   int
	size     int64
	end      int64
}

func (f *follower) follow(m message) error {
	kind, capacity := m.GetBlockMetadataType(), m.GetVolumeCapacityBytes()
	if !f.begun {
		f.begun, f.kind, f.capacity = true, kind, capacity
	}
	switch {
	case kind != api.BlockMetadataType_FIXED_LENGTH && kind != api.BlockMetadataType_VARIABLE_LENGTH:
		return fmt.Errorf("ranges of type %v", kind)
	case capacity <= 0:
		return fmt.Errorf("a volume of %d bytes", capacity)
	case kind != f.kind || capacity != f.capacity:
		return fmt.Errorf("%v of %d bytes became %v of %d", f.kind, f.capacity, kind, capacity)
	}
	for _, each := range m.GetBlockMetadata() {
		if err := f.step(each.GetByteOffset(), each.GetSizeBytes()); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) step(at, size int64) error {
	if at < 0 || size < 1 || at > math.MaxInt64-size {
		return fmt.Errorf("a range of %d bytes at %d", size, at)
	}
	// Only the first may start before the offset that was asked for; it must end beyond.
	if f.ranges == 0 && at+size <= f.end || f.ranges > 0 && at < f.end {
		return fmt.Errorf("a range of %d bytes at %d, after the end at %d", size, at, f.end)
	}
	// A last block may be cut off at the volume's end.
	if f.kind == api.BlockMetadataType_FIXED_LENGTH && f.ranges > 0 && size != f.size && (size > f.size || at+size != f.capacity) {
		return fmt.Errorf("a block of %d bytes among blocks of %d", size, f.size)
	}
	f.ranges, f.size, f.end = f.ranges+1, size, at+size
	return nil
}
