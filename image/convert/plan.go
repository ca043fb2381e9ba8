package convert

import (
	"context"

	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/plan"
)

// Plan reads src and plans it as [Import] does with the same options, and seals and stores
// nothing: the paper's VDSS alone.
func Plan(ctx context.Context, src format.Source, o ImportOptions) (plan.Report, error) {
	o.prepare(src.Size())
	survey, err := look(ctx, src)
	if err != nil {
		return plan.Report{}, err
	}
	planner := plan.New(plan.Input{Size: src.Size(), BlockSize: o.Create.BlockSize, Analysers: survey.analysers})
	_, err = copyIn(ctx, src, survey, planner, nowhere{}, o.Progress)
	return planner.Report(), err
}

// nowhere is a sink that keeps nothing.
type nowhere struct{}

func (nowhere) AddRegion(uint64, []image.Piece) error { return nil }
